"""Compares one epoch over a mix of the TRACE tasks: ours with DeepSpeed, and PEFT's LoRA with transformers' Trainer.

    python -m benchmarks.epoch --data_dir LLM-CL-Benchmark_500

Both train on the same rows (contexts of up to 512 tokens) with the same rank, target modules, learning rate, micro
batch and global batch, on the built-in 135M model in fp32; each round trains new branches. The Trainer pads with
DataCollatorForSeq2Seq (its default collator does not pad labels), shuffles, and computes the loss of transformers, with
logits at every position. Operations, operator traffic, extra memory (growth of the peak) and kept activations (their
peak, without the model's weights) come from one additional epoch each.
"""

import argparse
import copy
import functools
import logging
import tempfile

import peft
import torch
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, PreTrainedModel, Trainer, TrainingArguments

from benchmarks.counting import costs
from benchmarks.mix import epoch_tokens, examples
from benchmarks.rounds import report
from codyra_llm.adapter.config import DEFAULT_TARGETS, CoDyRAConfig
from codyra_llm.adapter.merging import unwrap
from codyra_llm.config import RunConfig, TrainConfig
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.distributed.ranks import Ranks, start
from codyra_llm.engine.train import train_task
from codyra_llm.example import Example
from codyra_llm.methods import METHODS
from codyra_llm.models.load import load_model
from codyra_llm.models.source import resolve_model
from codyra_llm.selfcheck.timing import compared, interleave

RATE = 5e-4


def ours(model: PreTrainedModel, rows: list[Example], train: TrainConfig, packing: str, ranks: Ranks) -> GlobalBatches:
    """Trains one epoch of CoDyRA with this package; returns its batches."""
    batches = GlobalBatches(
        rows, train.global_batch_size, train.per_device_train_batch_size, 1, 0, "mix", packing=packing
    )
    method = METHODS["codyra"](RunConfig(train=train, adapter=CoDyRAConfig()))
    prepared = method.prepare(model, "mix", batches.total_steps)
    train_task(model, prepared.optimizer, prepared.schedule, batches, train, {}, ranks)
    unwrap(model)
    return batches


def theirs(model: PreTrainedModel, rows: list[Example], train: TrainConfig, tokenizer: object, folder: str) -> None:
    """Trains one epoch of PEFT's LoRA with transformers' Trainer."""
    lora = peft.get_peft_model(
        copy.copy(model), peft.LoraConfig(r=16, lora_alpha=16, target_modules=list(DEFAULT_TARGETS), bias="none")
    )
    dataset = [{"input_ids": row.prompt + row.answer, "labels": [-100] * len(row.prompt) + row.answer} for row in rows]
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=train.per_device_train_batch_size,
        gradient_accumulation_steps=train.global_batch_size // train.per_device_train_batch_size,
        learning_rate=RATE,
        num_train_epochs=1,
        lr_scheduler_type="cosine",
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    Trainer(lora, arguments, data_collator=DataCollatorForSeq2Seq(tokenizer), train_dataset=dataset).train()
    lora.unload()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="tasks/trace/sample")
    parser.add_argument("--rows", type=int, default=4, help="of each task")
    parser.add_argument("--global_batch", type=int, default=16)
    parser.add_argument("--micro_batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    ranks, model = start(), load_model("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct"))
    rows = [row for _, found in examples(tokenizer, options.data_dir, options.rows, "train") for row in found]
    train = TrainConfig(
        global_batch_size=options.global_batch, per_device_train_batch_size=options.micro_batch, learning_rate=RATE
    )
    padded: dict[str, str] = {}

    def epoch(packing: str) -> None:
        tokens, cells = epoch_tokens(ours(model, rows, train, packing, ranks))
        padded[f"ours, {packing}"] = f"{1 - tokens / cells:.1%}"

    with tempfile.TemporaryDirectory() as folder:
        contestants = {
            "PEFT and Trainer": functools.partial(theirs, model, rows, train, tokenizer, folder),
            **{f"ours, {packing}": functools.partial(epoch, packing) for packing in ("none", "bucket", "pack")},
        }
        times = compared(interleave(contestants, options.rounds, warmup=1), "PEFT and Trainer")
        table = [
            {
                "contestant": name,
                **times[name],
                "padded": padded.get(name, "as it falls"),
                **costs(run, model.parameters()),
            }
            for name, run in contestants.items()
        ]
    report(f"one epoch, {len(rows)} rows, {sum(map(len, rows))} tokens, {options.rounds} rounds", table, options.json)


if __name__ == "__main__":
    main()
