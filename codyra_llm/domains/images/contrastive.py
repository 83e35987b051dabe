"""The loss of a picture domain on CLIP, as in CoDyRA's released code, exact for any partition of a step into passes.

With unit features I [B, d] of a step's pictures and E [C, d] of the task's prompts, both with gradient, the labels y,
the temperature s = exp(logit_scale), and S classes of earlier tasks:

    image term   the mean over pictures of -log softmax(s I E^T)_y                 among the task's classes
    text term    -1 / (S + C) sum_j log softmax(s E_y(j) I^T)_j                    among the pictures of the step

The released code computes both over the prompts of all tasks so far. The image term masks the classes of earlier
tasks, and in the text term these have no picture, so that only their number S enters value and gradient.

A picture of an earlier task (`Method.replayed`) is learned as in its own task: the image term classifies it among the
classes of that task, whose prompts are then read with gradient as well. In the text term it is one of the step's
pictures, as the formula has it: the match for its own class, a negative for the current task's classes. Without such
a picture, a step is as above.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

from codyra_llm.adapter.layer import without_branches
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.distributed.ranks import Ranks
from codyra_llm.domains.images.passes import PicturePasses
from codyra_llm.domains.images.rows import ImageExample, Space
from codyra_llm.domains.images.towers import Features, padded
from codyra_llm.engine.learning import Learning
from codyra_llm.engine.retention import KINDS, Retention
from codyra_llm.methods.hooks import AnswerTokens


def contrastive_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    labels: torch.Tensor,
    earlier: int,
    scale: torch.Tensor | float,
    own: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (image term, text term) in nats.

    Args:
        images: [B, d], unit features.
        texts: [C, d], unit features of the prompts of the step's classes.
        labels: [B], from 0.
        earlier: the number of classes of earlier tasks that are not in `texts`.
        scale: the temperature.
        own: [B, C], True where a class belongs to the picture's task; None if all do.
    """
    logits = scale * images @ texts.T
    of_images = functional.cross_entropy(logits if own is None else logits.masked_fill(~own, -torch.inf), labels)
    of_texts = logits.T.log_softmax(-1)[labels, torch.arange(len(labels), device=labels.device)]
    return of_images, -of_texts.sum() / (earlier + len(texts))


@dataclass(frozen=True)
class Shown:
    """The pictures and classes of a step.

    Attributes:
        rows: [B], the indices of its pictures in the examples.
        examples: the pictures' examples.
        classes: [C], the numbers of the classes whose prompts it reads.
        device: the device of the tensors.
    """

    rows: Sequence[int]
    examples: Sequence[ImageExample]
    classes: Sequence[int]
    device: torch.device

    @cached_property
    def labels(self) -> torch.Tensor:
        """[B]: the column of each picture's class in `classes`."""
        columns = {number: column for column, number in enumerate(self.classes)}
        return torch.tensor([columns[example.answer[0]] for example in self.examples], device=self.device)

    @cached_property
    def parts(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(indices of its pictures, columns of its classes) of each task that has a picture in the step."""
        owns = sorted({example.own for example in self.examples}, key=lambda own: own.start)
        return [
            (
                self._places([example.own == own for example in self.examples]),
                self._places([number in own for number in self.classes]),
            )
            for own in owns
        ]

    @cached_property
    def own(self) -> torch.Tensor | None:
        """[B, C]: True where a class belongs to the picture's task; None if all do."""
        if len(self.parts) == 1 and len(self.parts[0][1]) == len(self.classes):
            return None
        allowed = torch.zeros(len(self.rows), len(self.classes), dtype=torch.bool, device=self.device)
        for pictures, columns in self.parts:
            allowed[pictures[:, None], columns] = True
        return allowed

    def tokens(self, pictures: torch.Tensor, columns: torch.Tensor) -> AnswerTokens:
        """Returns the given pictures, classified among the given classes, in the form that a method reads."""
        rows = torch.tensor(self.rows, device=self.device)[pictures]
        return AnswerTokens(torch.searchsorted(columns, self.labels[pictures]), rows, torch.zeros_like(rows))

    def _places(self, chosen: Sequence[bool]) -> torch.Tensor:
        return torch.tensor(chosen, device=self.device).nonzero()[:, 0]


Pair = tuple[torch.Tensor, torch.Tensor]  # unit features of a step's pictures [B, d] and prompts [C, d]


class ContrastiveObjective:
    """The objective of a task's steps; a step has one value over all its pictures and all prompts of the task.

    The text term couples all pictures, so it is no sum over micro batches. With several passes, features are first
    computed without gradient and gathered; from these come the value and its gradient with respect to each feature.
    Then each pass computes its own features again, with gradient, and yields (features x their gradient).sum(), which
    has the same gradient. A crop is a function of (seed, task, step, row), and CLIP has no dropout, so both
    computations see the same input.

    A method's term (`Hooks.output_loss`) is a sum over pictures; its mean is added to the loss.

    Args:
        engine: the DeepSpeed engine around `Features`.
        batches: the pictures of each step.
        ranks: the ranks that a step is partitioned over.
        retention: not used.
    """

    def __init__(self, engine: Any, batches: GlobalBatches, ranks: Ranks, retention: Retention | None = None) -> None:
        self.engine, self.batches, self.ranks = engine, batches, ranks
        self.examples: list[Any] = list(batches.examples)
        self.space: Space = self.examples[0].space
        self.own: range = self.examples[0].own  # of the current task: replayed pictures come after its own
        self.scale = engine.module.model.logit_scale.float().exp()
        self.hooks, self.term = engine.module.hooks, engine.module.term
        self.asks_teacher = bool(self.term and self.hooks.has_teacher)

    def passes(self, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields the loss and its parts for each pass; see `Objective.passes`."""
        shown, passes = self._shown(step), self.engine.gradient_accumulation_steps()
        if passes * self.ranks.size > 1:
            yield from self._in_parts(step, shown, passes)
            return
        inputs = self._pixels(shown.rows, step), self._ids(shown.classes)
        before = self._before(inputs) if self.asks_teacher else None
        loss = self._loss(self.engine(*inputs), shown, before)
        yield loss, _parts(loss)

    def _shown(self, step: int) -> Shown:
        rows = self.batches.rows_of(step)
        examples = [self.examples[row] for row in rows]
        classes = sorted({number for own in {example.own for example in examples} | {self.own} for number in own})
        if self.term and self.hooks.among_all:
            classes = list(range(self.own.stop))
        return Shown(rows, examples, classes, self.ranks.device)

    def _in_parts(self, step: int, shown: Shown, passes: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields the passes of a partitioned step: pictures and prompts are distributed in turn over all passes."""
        count, dealt = passes * self.ranks.size, (shown.rows, shown.classes)
        widths = self.batches.micro_batch_size, -(-len(shown.classes) // count)  # the most that a pass has of each
        places = [number * self.ranks.size + self.ranks.rank for number in range(passes)]
        inputs = []
        for place in places:
            own = [items[place * width : (place + 1) * width] for items, width in zip(dealt, widths, strict=True)]
            # a pass without its own reads another's, without effect: under ZeRO-3 all ranks take part in each pass
            inputs.append((self._pixels(own[0] or shown.rows[:1], step), self._ids(own[1] or shown.classes[:1])))

        def gathered(found: Sequence[Pair]) -> list[torch.Tensor]:
            of_all = zip(zip(*found, strict=True), widths, dealt, strict=True)
            return [self._gathered(parts, width)[: len(items)] for parts, width, items in of_all]

        with torch.no_grad():
            images, texts = gathered([self.engine.module(*each) for each in inputs])
            before = gathered([self._before(each) for each in inputs]) if self.asks_teacher else None
        loss = self._loss((images.requires_grad_(), texts.requires_grad_()), shown, before)
        gradients = torch.autograd.grad(loss, (images, texts))
        for place, each in zip(places, inputs, strict=True):
            total = torch.zeros((), device=self.ranks.device)
            for features, gradient, width in zip(self.engine(*each), gradients, widths, strict=True):
                own_gradient = gradient[place * width : (place + 1) * width]
                total = total + (features[: len(own_gradient)] * own_gradient).sum()
            yield total * count, _parts(loss / count)  # DeepSpeed averages gradients over ranks and passes

    def mean(self, step: int, summed: float) -> float:
        """Returns `summed`: a step's loss is a mean already."""
        return summed

    def _before(self, inputs: Pair) -> Pair:
        """Returns the features of the model before the task, without its branches."""
        with torch.no_grad(), without_branches(self.engine.module):
            found: Pair = self.engine.module(*inputs)
        return found

    def _loss(self, now: Pair, shown: Shown, before: Sequence[torch.Tensor] | None) -> torch.Tensor:
        """Returns the loss of a step from its features and, where a method asks for them, those before the task."""
        images, texts = now
        terms = contrastive_loss(images, texts, shown.labels, self.own.stop - len(texts), self.scale, shown.own)
        loss = terms[0] + terms[1]
        if not self.term:
            return loss
        logits = self.scale * images @ texts.T
        known = None if before is None else self.scale * before[0] @ before[1].T
        every = [torch.arange(size, device=logits.device) for size in logits.shape]
        for pictures, columns in [(every[0], every[1])] if self.hooks.among_all else shown.parts:
            at = pictures[:, None], columns
            added = self.term(logits[at], shown.tokens(pictures, columns), None if known is None else known[at])
            loss = loss if added is None else loss + added / len(images)
        return loss

    def _pixels(self, rows: Any, step: int) -> torch.Tensor:
        seeds = [f"{self.batches.seed}/{self.batches.task}/{step}/{row}" for row in rows]
        pictures = [self.examples[row].picture for row in rows]
        return self.space.pixels.to_learn(pictures, seeds).to(self.ranks.device)

    def _ids(self, classes: Sequence[int]) -> torch.Tensor:
        return padded([self.space.prompts[number] for number in classes], self.space.end).to(self.ranks.device)

    def _gathered(self, own: Sequence[torch.Tensor], width: int) -> torch.Tensor:
        """[places, d]: the features of all passes of all ranks, in the order of distribution."""
        whole = torch.stack([functional.pad(each, (0, 0, 0, width - len(each))) for each in own])
        every = [torch.empty_like(whole) for _ in range(self.ranks.size)]
        dist.all_gather(every, whole)
        return torch.stack(every, dim=1).flatten(0, 2)


CONTRASTIVE = Learning(Features, ContrastiveObjective, PicturePasses)


def _parts(loss: torch.Tensor) -> torch.Tensor:
    return functional.pad(loss.detach()[None], (0, len(KINDS)))
