"""Answering the test rows of all TRACE tasks: ours, beside transformers' generate over padded batches.

    python -m benchmarks.generate --data_dir LLM-CL-Benchmark_500

The built-in 135M model, greedy. Plain: task after task in the file's order, batches padded on the left, each with its
task's limit of new tokens; a row ends at the end-of-sequence token, a batch with its last row. Ours ends a row at its
task's stop strings as well, and computes the loss of every true answer beside its own answer. `generate, same stops`
gives transformers' generate the stop strings too.
"""

import argparse
import logging
from collections.abc import Sequence

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.mix import examples
from benchmarks.rounds import interleave, ratios, report
from codyra_llm.data.encode import Example
from codyra_llm.data.stream import Task
from codyra_llm.evaluation.generate import Question, answer_questions
from codyra_llm.models.load import load_model, resolve_model

Mix = Sequence[tuple[Task, list[Example]]]


@torch.inference_mode()
def plain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, mix: Mix, batch_size: int, cap: int, stops: bool
) -> int:
    """Answers by transformers' generate; returns the number of decoding steps."""
    steps = 0
    for task, rows in mix:
        for first in range(0, len(rows), batch_size):
            prompts = [{"input_ids": row.prompt} for row in rows[first : first + batch_size]]
            batch = tokenizer.pad(prompts, padding_side="left", return_tensors="pt")
            output = model.generate(
                **batch,
                max_new_tokens=min(cap, task.spec.max_new_tokens),
                do_sample=False,
                **({"stop_strings": list(task.spec.stop), "tokenizer": tokenizer} if stops and task.spec.stop else {}),
            )
            steps += output.shape[1] - batch["input_ids"].shape[1]
    return steps


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="tasks/trace/sample")
    parser.add_argument("--rows", type=int, default=4, help="of each task")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=128, help="cap on the task file's own limits")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    model = load_model("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct"))
    mix, cap = examples(tokenizer, options.data_dir, options.rows, "test"), options.max_new_tokens
    questions = [
        Question(row, min(cap, task.spec.max_new_tokens), task.spec.stop) for task, rows in mix for row in rows
    ]
    contestants = {
        "generate": lambda: plain(model, tokenizer, mix, options.batch_size, cap, stops=False),
        "generate, same stops": lambda: plain(model, tokenizer, mix, options.batch_size, cap, stops=True),
        "ours, with the true answers' losses": lambda: answer_questions(
            model, tokenizer, questions, options.batch_size
        ),
    }
    found = ratios(interleave(contestants, options.rounds, warmup=1), "generate")
    table = [
        {
            "contestant": name,
            "time / generate": ratio["median"],
            "10th to 90th percentile": f"{ratio['p10']:.3f} to {ratio['p90']:.3f}",
        }
        for name, ratio in found.items()
    ]
    report(f"{len(questions)} test rows, batches of {options.batch_size}, {options.rounds} rounds", table, options.json)


if __name__ == "__main__":
    main()
