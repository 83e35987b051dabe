"""The loss of a domain of pictures on CLIP, as CoDyRA's released code has it, exact however a step is cut up.

With unit features I [B, d] of a step's pictures and E [C, d] of the task's prompts, both with gradient, the labels y,
the temperature s = exp(logit_scale), and S classes of earlier tasks:

    image term   the mean over pictures of -log softmax(s I E^T)_y                 among the task's classes
    text term    -1 / (S + C) sum_j log softmax(s E_y(j) I^T)_j                    among the pictures of the step

The released code forms both over the prompts of all tasks so far: the image term masks the classes of earlier tasks,
and in the text term they have no picture, so that of them nothing but their number is in value or gradient.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from codyra_llm.data.batches import GlobalBatches
from codyra_llm.distributed.ranks import Ranks
from codyra_llm.domains.images.rows import Space
from codyra_llm.engine.loss import Learning
from codyra_llm.engine.retention import KINDS, Retention
from codyra_llm.methods.hooks import Hooks


def contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, labels: torch.Tensor, earlier: int, scale: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(image term, text term) in nats.

    Args:
        images: [B, d], unit features. texts: [C, d], likewise, of the task's classes. labels: [B], from 0.
        earlier: how many classes earlier tasks have. scale: the temperature.
    """
    logits = scale * images @ texts.T
    of_images = functional.cross_entropy(logits, labels)
    own = logits.T.log_softmax(-1)[labels, torch.arange(len(labels), device=labels.device)]
    return of_images, -own.sum() / (earlier + len(texts))


class Features(nn.Module):
    """The unit features of pictures and prompts, as a module that an engine can wrap."""

    def __init__(self, model: PreTrainedModel, hooks: Hooks | None = None) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[pictures, 3, size, size], [prompts, tokens] -> unit features [pictures, d], [prompts, d], fp32."""
        return image_features(self.model, pixels), text_features(self.model, ids)


def image_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """[pictures, 3, size, size] -> [pictures, d], fp32, of length one."""
    pooled = model.vision_model(pixel_values=pixels.to(model.dtype)).pooler_output
    return functional.normalize(model.visual_projection(pooled).float(), dim=-1)


def text_features(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[prompts, tokens], filled up behind the end mark -> [prompts, d], fp32, of length one."""
    return functional.normalize(model.text_projection(model.text_model(input_ids=ids).pooler_output).float(), dim=-1)


def padded(prompts: Any, end: int) -> torch.Tensor:
    """[prompts, tokens]: prompts with their end marks, filled up with more of these."""
    longest = max(map(len, prompts))
    return torch.tensor([[*prompt, *[end] * (longest - len(prompt))] for prompt in prompts])


class ContrastiveObjective:
    """The steps of a task; each is one value over all its pictures and all prompts of the task.

    The text term couples all pictures, so it is no sum over micro batches. With several passes, features are first
    computed without gradient and gathered; from them come the value and its gradient for each feature; then each pass
    computes its own again, with gradient, and gives (features x their gradient).sum(), which has the same gradient.
    A crop is a function of (seed, task, step, row), and CLIP has no dropout: both see the same.

    Args:
        engine: DeepSpeed's, around `Features`. batches: the pictures of each step. ranks: that split them.
    """

    def __init__(self, engine: Any, batches: GlobalBatches, ranks: Ranks, retention: Retention | None = None) -> None:
        self.engine, self.batches, self.ranks = engine, batches, ranks
        self.examples: list[Any] = list(batches.examples)
        self.space: Space = self.examples[0].space
        self.own: range = self.examples[0].own
        self.prompts = [self.space.prompts[number] for number in self.own]
        self.scale = engine.module.model.logit_scale.float().exp()

    def passes(self, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """As `Objective.passes`."""
        rows, passes = self.batches.rows_of(step), self.engine.gradient_accumulation_steps()
        labels = torch.tensor([self.examples[row].answer[0] - self.own.start for row in rows], device=self.ranks.device)
        if passes * self.ranks.size > 1:
            yield from self._in_parts(step, rows, labels, passes)
            return
        images, texts = self.engine(self._pixels(rows, step), self._ids(self.prompts))
        loss = self._loss(images, texts, labels)
        yield loss, _parts(loss)

    def _in_parts(
        self, step: int, rows: list[int], labels: torch.Tensor, passes: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The passes of a step that is cut up: pictures, and prompts likewise, are dealt to all of them in turn."""
        count, dealt = passes * self.ranks.size, (rows, self.prompts)
        widths = self.batches.micro_batch_size, -(-len(self.prompts) // count)  # what a pass has of each, at most
        places = [number * self.ranks.size + self.ranks.rank for number in range(passes)]
        inputs = []
        for place in places:
            own = [items[place * width : (place + 1) * width] for items, width in zip(dealt, widths, strict=True)]
            # one without any reads another's, which does not count: under ZeRO-3 all ranks take part in each pass
            inputs.append((self._pixels(own[0] or rows[:1], step), self._ids(own[1] or self.prompts[:1])))
        with torch.no_grad():
            found = zip(*(self.engine.module(*each) for each in inputs), strict=True)
            images, texts = (
                self._gathered(parts, width)[: len(items)]
                for parts, width, items in zip(found, widths, dealt, strict=True)
            )
        loss = self._loss(images.requires_grad_(), texts.requires_grad_(), labels)
        gradients = torch.autograd.grad(loss, (images, texts))
        for place, each in zip(places, inputs, strict=True):
            total = torch.zeros((), device=self.ranks.device)
            for features, gradient, width in zip(self.engine(*each), gradients, widths, strict=True):
                own_gradient = gradient[place * width : (place + 1) * width]
                total = total + (features[: len(own_gradient)] * own_gradient).sum()
            yield total * count, _parts(loss / count)  # DeepSpeed averages gradients over ranks and passes

    def mean(self, step: int, summed: float) -> float:
        """As `Objective.mean`."""
        return summed

    def _loss(self, images: torch.Tensor, texts: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        of_images, of_texts = contrastive_loss(images, texts, labels, self.own.start, self.scale)
        return of_images + of_texts

    def _pixels(self, rows: Any, step: int) -> torch.Tensor:
        seeds = [f"{self.batches.seed}/{self.batches.task}/{step}/{row}" for row in rows]
        pictures = [self.examples[row].picture for row in rows]
        return self.space.pixels.to_learn(pictures, seeds).to(self.ranks.device)

    def _ids(self, prompts: Any) -> torch.Tensor:
        return padded(prompts, self.space.end).to(self.ranks.device)

    def _gathered(self, own: Sequence[torch.Tensor], width: int) -> torch.Tensor:
        """[places, d]: the features of all passes of all ranks, in the order in which they were dealt."""
        whole = torch.stack([functional.pad(each, (0, 0, 0, width - len(each))) for each in own])
        every = [torch.empty_like(whole) for _ in range(self.ranks.size)]
        dist.all_gather(every, whole)
        return torch.stack(every, dim=1).flatten(0, 2)


CONTRASTIVE = Learning(Features, ContrastiveObjective)


def _parts(loss: torch.Tensor) -> torch.Tensor:
    return functional.pad(loss.detach()[None], (0, len(KINDS)))
