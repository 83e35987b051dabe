"""Compares this project's batched generation with transformers' generate: answers and time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from codyra_llm.selfcheck.outcome import Row, Setting, bounded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from codyra_llm.example import Example

ROWS, LIMIT, ROUNDS = 16, 64, 5
OF_EACH_TASK = 3
LOSS_ALLOWED = 1e-3  # nats per answer


def plain(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: "Sequence[Example]",
    batch_size: int,
    limit: int,
    stop: Sequence[str] = (),
) -> "list[list[int]]":
    """Returns greedy answers by transformers' generate, as ids including padding, from left-padded batches."""
    import torch

    from codyra_llm.data.encode import padding_id

    pad = padding_id(tokenizer)
    stops = {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
    answers: list[list[int]] = []
    for first in range(0, len(rows), batch_size):
        prompts = [row.prompt for row in rows[first : first + batch_size]]
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        how = {"attention_mask": mask.to(model.device), "pad_token_id": pad, "max_new_tokens": limit, **stops}
        with torch.inference_mode():
            found: Any = model.generate(input_ids=ids, do_sample=False, **how)  # type: ignore[operator]
        answers += found[:, width:].tolist()
    return answers


def like_generate(setting: Setting) -> "Iterator[Row]":
    """Compares answers of the nano model in fp32: batched by this project with row by row by generate; and losses."""
    import torch

    from codyra_llm.engine.loss import AnswerLoss
    from codyra_llm.generation.generate import Question, answer_questions
    from codyra_llm.models.load import load_model
    from codyra_llm.models.source import open_source

    model, tokenizer = load_model("nano").to(setting.device), open_source("nano").tokenizer  # type: ignore[arg-type]
    rows = _nano_rows(tokenizer)
    found = answer_questions(model, tokenizer, [Question(row, 24) for row in rows], batch_size=8)
    expected = [tokenizer.decode(plain(model, tokenizer, [row], 1, 24)[0], skip_special_tokens=True) for row in rows]
    different = sum(ours.text != theirs for ours, theirs in zip(found, expected, strict=True))
    yield bounded("answers that differ from generate's", different, 0, of=len(rows))
    loss, worst = AnswerLoss(model), 0.0
    for row, answered in zip(rows, found, strict=True):
        ids = torch.tensor([row.prompt + row.answer], device=setting.device)
        labels = torch.tensor([[-100] * len(row.prompt) + row.answer], device=setting.device)
        with torch.no_grad():
            worst = max(worst, abs(float(loss(ids, labels)) - answered.loss))
    yield bounded("largest difference of an answer's loss, nats", worst, LOSS_ALLOWED)


def speed(setting: Setting) -> "Iterator[Row]":
    """Times answers of a model of the shape of Llama-3.2-1B with random weights; on a CPU, of the nano model."""
    import torch

    from codyra_llm.example import Example
    from codyra_llm.generation.generate import Question, answer_questions
    from codyra_llm.generation.prompt_lookup import Draft
    from codyra_llm.models.load import load_model
    from codyra_llm.models.source import open_source
    from codyra_llm.selfcheck.timing import compared, interleave

    tokenizer = open_source("nano").tokenizer
    if setting.small:
        model, length, limit, rounds = load_model("nano"), 64, 8, 2
    else:
        model, length, limit, rounds = _one_billion(setting.device), 512, LIMIT, ROUNDS
    torch.manual_seed(0)
    shared = torch.randint(5, 1000, (length // 2,)).tolist()  # a common prefix, as prompts of a task have
    rows = [Example(shared + torch.randint(5, 1000, (length // 2,)).tolist(), [7]) for _ in range(ROWS)]

    def ours() -> None:
        answer_questions(model, tokenizer, [Question(row, limit) for row in rows], ROWS)

    def without_guesses() -> None:
        with patch.object(Draft, "guess", return_value=[]):
            ours()

    contestants = {
        "generate": lambda: plain(model, tokenizer, rows, ROWS, limit),
        "ours, without guesses": without_guesses,
        "ours": ours,
    }
    seconds = interleave(contestants, rounds, warmup=1)
    for name, columns in compared(seconds, "generate").items():
        yield {"contestant": name, **columns, "rows": ROWS, "prompt": length, "new tokens": limit}


def _nano_rows(tokenizer: "PreTrainedTokenizerBase") -> "list[Example]":
    from codyra_llm.data.encode import encode_rows
    from codyra_llm.data.stream import TaskStream
    from codyra_llm.files import shipped

    folder = shipped("tasks/nano")
    stream = TaskStream.load(str(folder / "nano.yaml"), str(folder / "rows"), max_test_examples=OF_EACH_TASK)
    return [row for task in stream for row in encode_rows(tokenizer, task.test, 256, body=task.spec.body)]


def _one_billion(device: str) -> "PreTrainedModel":
    import torch
    from transformers import AutoModelForCausalLM

    from codyra_llm.models.architectures import find_source

    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            find_source("meta-llama/Llama-3.2-1B").config, dtype=torch.bfloat16
        )
    return model.eval()
