"""The domain of images: a few labelled pictures of each class, which CLIP classifies by the classes' prompts."""

import dataclasses
import operator
import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from codyra_llm.config import DataConfig, EvaluateConfig, RunConfig
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.data.chat import ChatTemplate
from codyra_llm.data.stream import Task, TaskStream
from codyra_llm.data.validation import with_validation
from codyra_llm.domains.base import Answer, Rows, Suite
from codyra_llm.domains.facts import FACTS, Facts, check_learns
from codyra_llm.domains.images.answers import answer_pictures, score_pictures
from codyra_llm.domains.images.contrastive import CONTRASTIVE
from codyra_llm.domains.images.pixels import read_pixels
from codyra_llm.domains.images.prompts import space_of
from codyra_llm.domains.images.rows import ImageTask, examples_of
from codyra_llm.domains.images.stream import load_stream
from codyra_llm.domains.images.suites import load_suites, score_suite
from codyra_llm.domains.images.towers import Features
from codyra_llm.engine.learning import Learning
from codyra_llm.errors import UserError, reason
from codyra_llm.evaluation.evaluate import TaskScores
from codyra_llm.evaluation.general.scores import SuiteFailure, SuiteScore
from codyra_llm.example import Example
from codyra_llm.generation.generate import Ask
from codyra_llm.methods.base import Method
from codyra_llm.models.source import Source, check_clip, open_source

# settings that concern text alone, and their value when they are not set
OF_TEXT = {
    "model.quantization": None,
    "data.chat_template": "none",
    "data.max_prompt_length": None,
    "data.max_answer_length": DataConfig.max_answer_length,
    "data.long_answers": "error",
    "retention.measures": False,
    "retention.protected": 0.0,
    "evaluate.parity": False,
    "evaluate.scores": "answers",
    "evaluate.max_new_tokens": None,
    "evaluate.demonstrations": 0,
    "evaluate.divergence": False,
}
ALLOWED = 0.3  # points by which a score of the model before training may differ from the published one


class Images:
    """The domain (`domains.base.Domain`) of CLIP."""

    facts: Facts = FACTS["images"]
    learning: Learning = CONTRASTIVE
    answer: Answer = staticmethod(answer_pictures)

    def settled(self, config: RunConfig) -> RunConfig:
        """Rejects settings of text, and sets the scoring variant to `union` where none is chosen."""
        for name, none in OF_TEXT.items():
            if operator.attrgetter(name)(config) != none:
                name = name.replace("retention.measures", "retention")
                raise UserError(f"{name}: has no meaning for images, which CLIP tells classes of; leave it out")
        check_learns(self.facts.name, config.method)
        if config.train.validation == "eval":
            raise UserError("train.validation eval: pictures have no split of that name; give a share, such as 0.2")
        variant = config.evaluate.scorer_variant
        if variant in self.facts.variants:
            return config
        if variant != EvaluateConfig.scorer_variant:
            raise UserError(
                f"evaluate.scorer_variant {variant} is one of text; images have {', '.join(self.facts.variants)}"
            )
        return dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, scorer_variant="union"))

    def open(self, config: RunConfig) -> Source:
        """Opens a CLIPModel folder with its tokenizer and its preprocessor configuration."""
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
        """Returns `stream`, or the tasks of the task file, with the limited number of pictures and validation rows."""
        stream = load_stream(config) if stream is None else stream
        if not stream.tasks:
            raise UserError("the stream has no task; give it at least one")
        limits = {"train": config.data.max_train_examples, "test": config.data.max_test_examples}
        setting, seed = config.train.validation if to_train else None, config.seed
        tasks = tuple(with_validation(_limited(task, limits), setting, seed) for task in stream)
        for task in map(_image_task, tasks) if to_train else ():
            if len(task.classes) == len(task.train) == 1:
                raise UserError(
                    f"task {task.name}: has one training picture, of its only class; what can be told from nothing is "
                    "learned by no step; give it another picture or class"
                )
        return dataclasses.replace(stream, tasks=tasks)

    def check_method(self, config: RunConfig, source: Source, method: Method) -> None:
        """Checks nothing."""

    def rows(self, config: RunConfig, source: Source, stream: TaskStream) -> Rows:
        """Returns the pictures as examples, with the classes of all tasks."""
        tasks = [_image_task(task) for task in stream]
        space = space_of(tasks, source)
        found = Rows()
        for task in tasks:
            found.train.append(examples_of(task, "train", space) if task.train else [])
            found.test.append(examples_of(task, "test", space))
            found.validation.append(examples_of(task, "eval", space) if task.validation else [])
            found.templates.append(None)
        return found

    def hashes(self, task: Task) -> dict[str, str]:
        """Returns the hash of each split's pictures and their classes, and that of the classes and their prompts."""
        return _image_task(task).hashes()

    def suites(self, config: RunConfig, source: Source, learned: Sequence[str]) -> Sequence[Suite]:
        """Loads tasks of the task file that the run does not learn; see `load_suites`."""
        return load_suites(config, source, learned)

    def score_suites(
        self, suites: Sequence[Any], source: Source, template: ChatTemplate | None, ask: Ask
    ) -> tuple[dict[str, SuiteScore | SuiteFailure], dict[str, list[dict[str, Any]]]]:
        """Computes the zero-shot accuracy on each suite; see `score_suite`."""
        found = {suite.name: score_suite(suite, ask) for suite in suites}
        return {name: score for name, (score, _) in found.items()}, {name: rows for name, (_, rows) in found.items()}

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        """Raises UserError if the model cannot compute features, or these are not finite."""
        side, end = model.config.vision_config.image_size, model.config.text_config.vocab_size - 1
        pixels = torch.zeros(1, 3, side, side, device=model.device)
        try:
            with torch.no_grad():
                found = Features(model)(pixels, torch.tensor([[0, end]], device=model.device))
        except Exception as error:  # a model's code can raise anything for sizes that it does not expect
            raise UserError(f"model.name_or_path {name}: cannot be run: {reason(error)}") from None
        if not all(torch.isfinite(features).all() for features in found):
            raise UserError(
                f"model.name_or_path {name}: its features are not finite in {str(model.dtype).removeprefix('torch.')}; "
                "try another model.dtype"
            )

    def scored(
        self, tasks: Sequence[Task], examples: Sequence[Sequence[Example]], config: EvaluateConfig, ask: Ask
    ) -> list[TaskScores]:
        """Scores the tasks; see `score_pictures`."""
        return score_pictures(tasks, examples, ask)

    def remarks(self, tasks: Sequence[Task], scored: Sequence[TaskScores], variant: str) -> tuple[list[str], list[str]]:
        """Returns the zero-shot scores, and a warning for each that differs from the published one."""
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
        """Returns a table of the tasks' classes, pictures, steps and prompts."""
        rows = [["task", "classes", "pictures", "steps", "test pictures", "prompt"]]
        for task, each in zip(map(_image_task, stream), batches, strict=True):
            counts = (len(task.classes), len(task.train), each.total_steps, len(task.test))
            rows.append([task.name, *map(str, counts), task.prompts[0]])
        return rows

    def described(self, source: Source, example: Any) -> str | None:
        """Returns the picture's file (or its size) and the prompt of its class."""
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
    """Returns the task with a fixed random subset of each split."""
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
