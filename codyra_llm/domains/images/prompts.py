"""Checks and tokenizes the prompts of the classes that pictures are classified among."""

from collections.abc import Sequence

from codyra_llm.domains.images.pixels import read_pixels
from codyra_llm.domains.images.rows import ImageTask, Space
from codyra_llm.errors import UserError
from codyra_llm.models.source import Source
from codyra_llm.text import shown


def space_of(tasks: Sequence[ImageTask], source: Source) -> Space:
    """Returns the classes of tasks with their tokenized prompts.

    Raises:
        UserError: a prompt is too long, or has the same tokens as another of its task; or the tokenizer adds no EOS
            token that the model knows, or has tokens that the model does not know.
    """
    first = [0]
    for task in tasks:
        first.append(first[-1] + len(task.classes))
    tokenizer, text = source.tokenizer, source.config.text_config
    prompts = [prompt for task in tasks for prompt in task.prompts]
    ids = tokenizer(prompts, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    for prompt, of_prompt in zip(prompts, ids, strict=True):
        # the model takes a prompt's features at its EOS token: the configured id, or the largest id of the prompt
        known = max(of_prompt) == end if text.eos_token_id == 2 else end == text.eos_token_id
        marked = known and of_prompt.index(end) == len(of_prompt) - 1
        if not marked or max(of_prompt) >= text.vocab_size:
            raise UserError(
                f"model.name_or_path {source.name}: its tokenizer gives the prompt {shown(prompt)} no EOS token that "
                "the model knows, or tokens that it does not know; give the tokenizer that belongs to it"
            )
    for task, start, stop in zip(tasks, first, first[1:], strict=False):
        _check_prompts(task, ids[start:stop], text.max_position_embeddings)
    classes = [name for task in tasks for name in task.classes]
    return Space([task.name for task in tasks], first, classes, prompts, ids, end, read_pixels(source))


def _check_prompts(task: ImageTask, ids: Sequence[Sequence[int]], longest: int) -> None:
    """Raises UserError if a class's prompt is longer than the model's context, or has the same tokens as another's."""
    labels: dict[tuple[int, ...], int] = {}
    for label, of_prompt in enumerate(ids):
        if len(of_prompt) > longest:
            raise UserError(
                f"task {task.name}: the prompt {shown(task.prompts[label])} has {len(of_prompt)} tokens, the model "
                f"reads {longest}; shorten the template or the class's name"
            )
        if (other := labels.setdefault(tuple(of_prompt), label)) != label:
            raise UserError(
                f"task {task.name}: the prompts of classes {shown(task.classes[other])} and "
                f"{shown(task.classes[label])} have the same tokens (case, blanks and forms of an accent do "
                "not count), so that none can be told from the other; rename one, or put their pictures together"
            )
