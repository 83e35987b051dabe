"""The settings of a run, except methods' own: frozen dataclasses, each field with its help text and its range.

Nothing here imports torch, so that mistakes in settings are reported at once.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from codyra_llm.adapter.config import CoDyRAConfig
from codyra_llm.options import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    AT_LEAST_TWO,
    AT_LEAST_ZERO,
    DECAY,
    SHARE,
    check_numbers,
    option,
)
from codyra_llm.text import shown

METHOD_FILES = Path(__file__).parent.parent / "methods"


@dataclass(frozen=True)
class ModelConfig:
    """The model: which one, its dtype and quantization."""

    name_or_path: str = option(
        "smollm2-135m-instruct",
        "hub id, HF folder, .gguf file, smollm2-135m-instruct, gemma3-270m, nano or shapes (CLIP)",
    )
    accept_gemma_terms: bool = option(
        False, "you agree to ai.google.dev/gemma/terms, so that gemma3-270m may be fetched", neutral=True
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "dtype of the frozen base; adapters are fp32")
    quantization: Literal["nf4", "int8"] | None = option(
        None, "store the frozen projections in 4 bits (nf4) or 8 (int8), compute in dtype; empty: stored in dtype"
    )
    attn_implementation: str | None = option(None, "sdpa, eager or flash_attention_2; empty: transformers' choice")
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, more time", neutral=True
    )


@dataclass(frozen=True)
class DataConfig:
    """How rows are converted to token sequences."""

    version: str | None = option(None, "label of the data version in results; empty: the name of data_dir")
    max_prompt_length: int | None = option(
        None,
        "tokens of a prompt; the document body of a longer one is cut; empty: the task's own, else 1024",
        within=AT_LEAST_ONE,
    )
    max_answer_length: int = option(512, "tokens of a training answer, EOS included", within=AT_LEAST_ONE)
    long_answers: Literal["error", "drop"] = option("error", "what to do with a training row whose answer is longer")
    allow_code: bool = option(
        False, "import the scorers that a task file names as module:function, which runs their code", neutral=True
    )
    packing: Literal["none", "bucket", "pack"] = option(
        "bucket",
        "how the rows of a step share forward passes: as they come (none), neighbours in length (bucket), or end to "
        "end without padding (pack); the loss is the same",
        neutral=True,
    )
    chat_template: str = option(
        "none",
        "none: prompts as they are, as in TRACE; auto: the model's chat template; or the path of a Jinja file",
    )
    max_train_examples: int | None = option(
        None, "rows of train.json to use for each task; empty: all", within=AT_LEAST_ONE
    )
    max_test_examples: int | None = option(
        None, "rows of test.json to score for each task; empty: all", within=AT_LEAST_ONE
    )


@dataclass(frozen=True)
class TrainConfig:
    """The optimization of one task; every task starts with a new optimizer."""

    global_batch_size: int = option(
        32, "rows of one optimizer step, over all ranks and accumulation steps", within=AT_LEAST_ONE
    )
    per_device_train_batch_size: int = option(
        1, "the most rows of one forward pass on one rank (the micro batch)", neutral=True, within=AT_LEAST_ONE
    )
    learning_rate: float = option(5e-4, "peak learning rate of the adapters", within=ABOVE_ZERO)
    warmup_steps: int = option(0, "linear warm-up steps of each task, before the cosine", within=AT_LEAST_ZERO)
    num_train_epochs: float | None = option(
        None, "passes over each task's rows; empty: the task file's own", within=ABOVE_ZERO
    )
    steps: int | None = option(
        None,
        "optimizer steps of each task, in the place of passes; empty: the task file's own, if it has any",
        within=AT_LEAST_ONE,
        unless_set=True,
    )
    adam_beta1: float = option(0.9, "AdamW's beta1", within=DECAY)
    adam_beta2: float = option(0.9999, "AdamW's beta2", within=DECAY)
    adam_bits: Literal[32, 8] = option(32, "bits of AdamW's moments of A and B; those of the gates have 32")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon", within=ABOVE_ZERO)
    weight_decay: float = option(0.0, "AdamW's weight decay", within=AT_LEAST_ZERO)
    max_grad_norm: float = option(1.0, "gradient norm to clip to; 0: none", within=AT_LEAST_ZERO)
    validation: str | float | None = option(
        None,
        "rows to validate on: eval (a split of its own), or a share of the training rows (0.05) or a number of them, "
        "which are then not trained on; empty: none",
    )
    validate_every: int = option(25, "optimizer steps between validations, if there are any", within=AT_LEAST_ONE)
    early_stopping: int | None = option(
        None, "end a task after this many validations without a lower loss; empty: never", within=AT_LEAST_ONE
    )
    keep_best: bool = option(False, "merge the step with the lowest validation loss, not the last one")
    checkpoint_every: int = option(
        25,
        "optimizer steps between checkpoints; each phase of a task ends with one as well",
        neutral=True,
        within=AT_LEAST_ONE,
    )

    def check(self) -> None:
        """Raises ValueError if settings contradict each other."""
        if self.steps and self.num_train_epochs:
            raise ValueError("train.steps and train.num_train_epochs say both how long a task is; leave one empty")
        value = self.validation
        is_size = isinstance(value, int | float) and (0 < value < 1 or value == int(value) > 0)
        if value is not None and value != "eval" and not is_size:
            raise ValueError(f"train.validation is {value}; it must be eval, a share below 1, or a number of rows")
        if value is None and (self.early_stopping or self.keep_best):
            raise ValueError("train.early_stopping and train.keep_best need train.validation")


@dataclass(frozen=True)
class RetentionConfig:
    """How a model is kept close to the one before a task, without earlier data: KL(before || now) as a loss."""

    prompts: float = option(
        0.0,
        "weight of the divergence at the prompt tokens of the task's rows, nats a token; 0: none",
        within=AT_LEAST_ZERO,
    )
    answers: float = option(
        0.0, "weight of it at the tokens of the true answers, which the task does change; 0: none", within=AT_LEAST_ZERO
    )
    own_text: float = option(
        0.0, "weight of it on text that the model has written itself before the task; 0: none", within=AT_LEAST_ZERO
    )
    budget: float | None = option(
        None,
        "nats a token by which a task may change the model there: the weights are multiplied by a factor that rises "
        "while it is exceeded and falls else; empty: they stay as they are",
        within=ABOVE_ZERO,
    )
    every: int = option(
        1,
        "n: measure it in every n-th optimizer step only, with n times the weight; the larger, the cheaper",
        within=AT_LEAST_ONE,
    )
    protected: float = option(
        0.0,
        "share of each projection's input directions, those that the model's own text uses most, which branches do not "
        "read; 0: none",
        within=DECAY,
    )
    protected_softly: bool = option(
        False,
        "scale each input direction by c / (c + e) in place of blocking some: e is its energy on the text, c that at "
        "which the protected share ends",
    )
    top_k: int | None = option(
        None,
        "k: compare the k likeliest next tokens of own text, and all others as one, with what is measured once "
        "before the task: no reference pass in a step; empty: the whole vocabulary, with a reference pass",
        within=AT_LEAST_ONE,
        unless_set=True,
    )
    texts: int = option(32, "texts that the model writes before each task", within=AT_LEAST_ONE)
    text_length: int = option(96, "tokens of a text, at most", within=AT_LEAST_TWO)
    texts_per_step: int = option(2, "texts of an optimizer step, over all ranks", within=AT_LEAST_ONE)

    @property
    def measures(self) -> bool:
        """True if a divergence is added to the loss."""
        return bool(self.prompts or self.answers or self.own_text)

    def check(self) -> None:
        """Raises ValueError if settings contradict each other."""
        for name, is_set in (("budget", self.budget is not None), ("every", self.every > 1)):
            if is_set and not self.measures:
                raise ValueError(f"retention.{name} needs retention.prompts, answers or own_text above 0")
        if self.top_k and (not self.own_text or self.prompts or self.answers):
            raise ValueError(
                "retention.top_k goes with retention.own_text alone: prompts and answers need the pass that it saves"
            )
        if self.protected_softly and not self.protected:
            raise ValueError("retention.protected_softly needs retention.protected above 0")


@dataclass(frozen=True)
class MergeConfig:
    """How the update of a finished task is merged into the weights."""

    scale: float = option(1.0, "share of the update that is merged; below 1 is a control, not the method", within=SHARE)
    mode: Literal["exact", "in_place"] = option(
        "exact",
        "exact: after each task, weights are the original ones plus all updates, rounded once; in_place: each task's "
        "update is added to the weights as they are and rounded again, which needs no original to read from",
    )
    save_quantized: bool = option(
        True,
        "of a quantized base: save the model that was measured, quantized (true), or the original weights plus all "
        "updates in model.dtype (false)",
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """What is scored, and how answers are generated."""

    tasks: Literal["all", "seen", "last"] = option(
        "all", "after each task score all tasks, those seen so far, or (last) all of them once, at the end"
    )
    batch_size: int = option(16, "rows generated at once on one rank", neutral=True, within=AT_LEAST_ONE)
    max_new_tokens: int | None = option(None, "cap on the task file's own; empty: no cap", within=AT_LEAST_ONE)
    gather: Literal["auto", "always", "never"] = option(
        "auto",
        "ZeRO stage 3: gather all weights on every rank while scoring (always), or each module's only while it runs "
        "(never: slow); auto: always where they fit",
        neutral=True,
    )
    parity: bool = option(False, "as the published runs: 512 new tokens for every task, no stop strings")
    scores: Literal["answers", "nll"] = option(
        "answers",
        "answers: generate and score them; nll: generate nothing, a score is 100 x exp(-NLL of the true answers), the "
        "geometric mean of their tokens' probabilities in percent",
    )
    demonstrations: int = option(
        0,
        "training rows with their answers that are read before the prompt of each test row (in-context learning), the "
        "same for all rows of a task, drawn by the seed",
        within=AT_LEAST_ZERO,
    )
    divergence: bool = option(
        False,
        "after each task, measure the KL divergence of the model's outputs from those before the task: on the task's "
        "test rows, on those of earlier tasks, and on suites of plain text",
    )
    scorer_variant: Literal["trace_strict", "treelora_prefix", "moram", "lenient", "union", "within_task"] = option(
        "lenient",
        "the variant that fills the matrix; all are computed and kept. Of images: union, among the classes of all "
        "tasks (there the default), or within_task, among those of the picture's own",
    )


@dataclass(frozen=True)
class GeneralConfig:
    """The suites that general ability is measured on, in addition to the tasks that are learned."""

    suites: tuple[str, ...] = option(
        (),
        "mmlu, gsm8k, bbh, tydiqa, boolq, piqa, any task of lm-eval, or a YAML file in its format; of images, tasks of "
        "the task file that the order does not have, which are told zero-shot; empty: none",
    )
    data_dir: str | None = option(
        None, "folder with the suites' data; empty: from the hub, and of images the run's data_dir"
    )
    allow_code: bool = option(
        False, "run the code that a suite's YAML file names (!function); read it first: it can do all that you can"
    )
    limit: int | None = option(None, "items of each suite, the same every time; empty: all", within=AT_LEAST_ONE)
    after: tuple[str, ...] = option(
        (), "tasks after which it is measured, beside the base model; last: after the last one; empty: each"
    )

    def is_due(self, tasks: Sequence[str], number: int) -> bool:
        """True if general ability is measured after `number` of the tasks; 0: on the base model."""
        last = {"last"} if number == len(tasks) else set()
        return not number or not self.after or bool({tasks[number - 1], *last} & set(self.after))


@dataclass(frozen=True)
class BaseConfig:
    """The settings of every run; `schema.RunConfig` adds a section for each method with settings of its own."""

    output_dir: str = option("runs/run", "the run folder", neutral=True)
    data_dir: str = option("tasks/trace/sample", "folder with <task>/{train,eval,test}.json")
    task_file: str = option("tasks/trace/trace.yaml", "the stream's tasks as data: scorers, lengths, epochs, orders")
    order: str | tuple[str, ...] = option("order1", "an order of the task file by name, or a list of tasks")
    extend: str | None = option(
        None, "folder `ledger` of a finished run: learn new tasks on top of it; model.name_or_path is the base it names"
    )
    method: str = option("codyra", "how a task is learned")
    seed: int = option(1234, "seed of the adapters' draws and of the order of rows")
    deepspeed: str | None = option(
        None, "DeepSpeed JSON, for example ds_configs/zero2.json; empty: ZeRO stage 0", neutral=True
    )
    resume: Literal["auto", "never"] = option(
        "auto", "auto: resume the run that output_dir contains; never: start over", neutral=True
    )
    tracking: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = option(
        ("tensorboard",), "where curves go: tensorboard, wandb (Weights & Biases), mlflow; empty: nowhere", neutral=True
    )
    rendezvous_seconds: float = option(
        300.0, "how long a process waits at the start for the others of the run", neutral=True, within=ABOVE_ZERO
    )
    collective_seconds: float = option(
        1800.0,
        "how long a process waits for the others in one collective operation before it ends",
        neutral=True,
        within=ABOVE_ZERO,
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: CoDyRAConfig = field(default_factory=CoDyRAConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    general: GeneralConfig = field(default_factory=GeneralConfig)

    def __post_init__(self) -> None:
        check_numbers(self)
        self.train.check()
        self.retention.check()
        if self.method not in (names := method_names()):
            raise ValueError(f"method is {shown(self.method)}; there are {', '.join(names)}")
        if self.model.quantization and self.merge.mode == "in_place":
            raise ValueError("merge.mode in_place would lose most of an update to a quantized weight; use exact")


def method_names() -> list[str]:
    """Returns the names of all methods; before these are imported, which takes seconds, from their files."""
    imported = sys.modules.get("codyra_llm.methods")
    return list(imported.METHODS) if imported else _named_by_files()


@cache
def _named_by_files() -> list[str]:
    files = sorted(METHOD_FILES.glob("*.py"))
    return [
        file.stem for file in files if re.search(rf"""\bname\b.*=\s*["']{file.stem}["']""", file.read_text("utf-8"))
    ]
