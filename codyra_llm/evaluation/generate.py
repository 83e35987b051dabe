"""Batched greedy generation: rows sorted by length, left-padded, with a KV cache and per-task stops."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string; blank space that opens an answer does not end it."""
    opening = len(text) - len(text.lstrip())
    positions = [text.find(string, opening) for string in stop]
    found = [position for position in positions if position >= 0]
    return text[: min(found)] if found and opening < len(text) else text


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    batch_size: int = 16,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> tuple[list[str], int]:
    """Greedy continuations of token-id prompts, in their order, and the number of tokens generated.

    An answer ends at the end-of-sequence token, at a stop string (left out of it) or after `max_new_tokens`. The
    model's own sampling defaults are not used.

    Args:
        prompts: ids, begin mark included.
        on_batch: called after each batch with the number of rows it had.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad
    )
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers, generated = [""] * len(prompts), 0
    defaults, model.generation_config = model.generation_config, greedy
    try:
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            width = max(len(prompts[i]) for i in rows)
            input_ids = torch.full((len(rows), width), pad)
            mask = torch.zeros_like(input_ids)
            for k, i in enumerate(rows):
                input_ids[k, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[k, width - len(prompts[i]) :] = 1
            output = model.generate(
                input_ids.to(model.device),
                attention_mask=mask.to(model.device),
                stopping_criteria=[_StopStrings(tokenizer, stop, width)] if stop else None,
            )
            continuations = output[:, width:].tolist()
            for i, ids in zip(rows, continuations, strict=True):
                ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
                generated += len(ids)
                answers[i] = cut_at_stop(tokenizer.decode(ids, skip_special_tokens=True), stop)
            on_batch(len(rows))
    finally:
        model.generation_config = defaults
    return answers, generated


class _StopStrings(StoppingCriteria):
    """Ends a row when its answer holds a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], width: int) -> None:
        self.tokenizer, self.stop, self.width = tokenizer, stop, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        texts = self.tokenizer.batch_decode(input_ids[:, self.width :], skip_special_tokens=True)
        done = [cut_at_stop(text, self.stop) != text for text in texts]
        return torch.tensor(done, device=input_ids.device)
