"""Images: few labelled pictures of each class, which CLIP tells apart by the classes' prompts."""

import dataclasses
import operator
import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from codyra_llm.config import DataConfig, EvaluateConfig, RunConfig
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.data.stream import Task, TaskStream
from codyra_llm.domains.base import Answer, Rows
from codyra_llm.domains.facts import FACTS, Facts, check_learns
from codyra_llm.domains.images.answers import answer_pictures, score_pictures
from codyra_llm.domains.images.contrastive import CONTRASTIVE
from codyra_llm.domains.images.pixels import read_pixels
from codyra_llm.domains.images.rows import ImageTask, Space, examples_of
from codyra_llm.domains.images.stream import load_stream
from codyra_llm.domains.images.towers import Features
from codyra_llm.engine.learning import Learning
from codyra_llm.errors import UserError, reason
from codyra_llm.evaluation.evaluate import TaskScores
from codyra_llm.example import Example
from codyra_llm.generation.generate import Ask
from codyra_llm.methods.base import Method
from codyra_llm.models.source import Source, check_clip, open_source
from codyra_llm.text import shown

# settings that say something of text, and the value at which they say nothing
OF_TEXT = {
    "model.quantization": None,
    "data.chat_template": "none",
    "data.max_prompt_length": None,
    "data.max_answer_length": DataConfig.max_answer_length,
    "data.long_answers": "error",
    "train.validation": None,
    "retention.measures": False,
    "retention.protected": 0.0,
    "evaluate.parity": False,
    "evaluate.scores": "answers",
    "evaluate.max_new_tokens": None,
    "evaluate.demonstrations": 0,
    "evaluate.divergence": False,
    "general.suites": (),
}
ALLOWED = 0.3  # points by which a score of the model before it is taught may differ from the published one


class Images:
    """`domains.base.Domain` of CLIP."""

    facts: Facts = FACTS["images"]
    learning: Learning = CONTRASTIVE
    answer: Answer = staticmethod(answer_pictures)

    def settled(self, config: RunConfig) -> RunConfig:
        """The matrix is filled by `union` where no other variant is asked for."""
        for name, none in OF_TEXT.items():
            if operator.attrgetter(name)(config) != none:
                name = name.replace("retention.measures", "retention")
                raise UserError(f"{name}: has no meaning for images, which CLIP tells classes of; leave it out")
        check_learns(self.facts.name, config.method)
        variant = config.evaluate.scorer_variant
        if variant in self.facts.variants:
            return config
        if variant != EvaluateConfig.scorer_variant:
            raise UserError(
                f"evaluate.scorer_variant {variant} is one of text; images have {', '.join(self.facts.variants)}"
            )
        return dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, scorer_variant="union"))

    def open(self, config: RunConfig) -> Source:
        """A folder of CLIPModel, with its tokenizer and what it says of pixels."""
        source = open_source(config.model.name_or_path, config.model.accept_gemma_terms, check_clip)
        read_pixels(source)
        for name in ("text_config", "vision_config"):
            if getattr(source.config, name).attention_dropout:
                raise UserError(
                    f"model.name_or_path {source.name}: {name}.attention_dropout is "
                    f"{getattr(source.config, name).attention_dropout:g}; a step reads each picture twice, which must "
                    "be the same; set it to 0 in config.json"
                )
        return source

    def stream(self, config: RunConfig, stream: TaskStream | None, to_train: bool) -> TaskStream:
        """Tasks of a task file for images, or those given."""
        stream = load_stream(config) if stream is None else stream
        if not stream.tasks:
            raise UserError("the stream has no task; give it at least one")
        limits = {"train": config.data.max_train_examples, "test": config.data.max_test_examples}
        return dataclasses.replace(stream, tasks=tuple(_limited(task, limits) for task in stream))

    def check_method(self, config: RunConfig, source: Source, method: Method) -> None:
        """Nothing more."""

    def rows(self, config: RunConfig, source: Source, stream: TaskStream) -> Rows:
        """Pictures with the classes of all tasks."""
        tasks = [_image_task(task) for task in stream]
        space = _space(tasks, source)
        found = Rows()
        for task in tasks:
            found.train.append(examples_of(task, "train", space) if task.train else [])
            found.test.append(examples_of(task, "test", space))
            found.validation.append([])
            found.templates.append(None)
        return found

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        """Whether it gives features that are finite."""
        side, end = model.config.vision_config.image_size, model.config.text_config.vocab_size - 1
        pixels = torch.zeros(1, 3, side, side, device=model.device)
        try:
            with torch.no_grad():
                found = Features(model)(pixels, torch.tensor([[0, end]], device=model.device))
        except Exception as error:  # of whatever the model's code assumes of its sizes
            raise UserError(f"model.name_or_path {name}: cannot be run: {reason(error)}") from None
        if not all(torch.isfinite(features).all() for features in found):
            raise UserError(
                f"model.name_or_path {name}: its features are not finite in {str(model.dtype).removeprefix('torch.')}; "
                "try another model.dtype"
            )

    def scored(
        self, tasks: Sequence[Task], examples: Sequence[Sequence[Example]], config: EvaluateConfig, ask: Ask
    ) -> list[TaskScores]:
        """As `score_pictures`."""
        return score_pictures(tasks, examples, config, ask)

    def remarks(self, tasks: Sequence[Task], scored: Sequence[TaskScores], variant: str) -> tuple[list[str], list[str]]:
        """The zero-shot row, and where it is not the published one."""
        scores = [found.totals[variant] for found in scored]
        row = ", ".join(f"{task.name} {score:.1f}" for task, score in zip(tasks, scores, strict=True))
        said = [f"zero-shot, {variant}: {row}; mean {sum(scores) / len(scores):.1f}"]
        warned = []
        for task, score in zip(map(_image_task, tasks), scores, strict=True):
            known = task.published.get(variant)
            if known is not None and abs(score - known) > ALLOWED:
                warned.append(
                    f"task {task.name}: zero-shot {score:.1f} ({variant}), published {known:.1f}: pictures, class "
                    "names, prompts or weights are not those of the published runs"
                )
        return said, warned

    def table(self, config: RunConfig, stream: TaskStream, batches: Sequence[GlobalBatches]) -> list[list[str]] | None:
        """Classes and pictures."""
        rows = [["task", "classes", "pictures", "steps", "test pictures", "prompt"]]
        for task, each in zip(map(_image_task, stream), batches, strict=True):
            counts = (len(task.classes), len(task.train), each.total_steps, len(task.test))
            rows.append([task.name, *map(str, counts), task.prompts[0]])
        return rows

    def described(self, source: Source, example: Any) -> str | None:
        """The file and the prompt of its class."""
        prompt = example.space.texts[example.answer[0]]
        name = example.picture.source
        shape = getattr(name, "shape", None)
        return f"{name if shape is None else f'a picture of {shape[1]} x {shape[0]}'} >>{prompt}<<"


IMAGES = Images()


def _image_task(task: Task) -> ImageTask:
    if not isinstance(task, ImageTask):
        raise UserError(f"task {task.name}: is one of text, beside others of images; a stream has one kind")
    return task


def _limited(task: Task, limits: dict[str, int | None]) -> ImageTask:
    """The task with a fixed random choice of each split."""
    task = _image_task(task)
    chosen = {}
    for split, pictures in task.pictures.items():
        limit, numbers = limits.get(split), range(len(pictures))
        chosen[split] = (
            numbers
            if limit is None or limit >= len(pictures)
            else sorted(random.Random(f"{task.name}/{split}").sample(numbers, limit))
        )
    rows = {"train": task.train, "test": task.test}
    return dataclasses.replace(
        task,
        pictures={split: [task.pictures[split][number] for number in numbers] for split, numbers in chosen.items()},
        train=[rows["train"][number] for number in chosen.get("train", ())],
        test=[rows["test"][number] for number in chosen.get("test", ())],
    )


def _space(tasks: Sequence[ImageTask], source: Source) -> Space:
    """The classes of tasks.

    Raises:
        UserError: a prompt is too long, or the same as another of its task to the model; or the tokenizer ends no
            prompt, or has tokens that the model does not know.
    """
    first = [0]
    for task in tasks:
        first.append(first[-1] + len(task.classes))
    tokenizer, text = source.tokenizer, source.config.text_config
    prompts = [prompt for task in tasks for prompt in task.prompts]
    ids = tokenizer(prompts, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    for prompt, of_prompt in zip(prompts, ids, strict=True):
        # the model takes a prompt's features where its end mark is: the configured one, or that of the largest id
        known = max(of_prompt) == end if text.eos_token_id == 2 else end == text.eos_token_id
        marked = known and of_prompt.index(end) == len(of_prompt) - 1
        if not marked or max(of_prompt) >= text.vocab_size:
            raise UserError(
                f"model.name_or_path {source.name}: its tokenizer gives the prompt {shown(prompt)} no end mark that "
                "the model knows, or tokens that it does not know; give the tokenizer that belongs to it"
            )
    for task, start, stop in zip(tasks, first, first[1:], strict=False):
        _check_prompts(task, ids[start:stop], text.max_position_embeddings)
    classes = [name for task in tasks for name in task.classes]
    return Space([task.name for task in tasks], first, classes, prompts, ids, end, read_pixels(source))


def _check_prompts(task: ImageTask, ids: Sequence[Sequence[int]], longest: int) -> None:
    """Raises UserError where a model would not read a class's prompt to its end, or reads another's as the same."""
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
