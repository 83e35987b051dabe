"""Passes over single pictures, outside of training steps: what a method may compute with a model (`RowPasses`)."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from codyra_llm.adapter.layer import without_branches
from codyra_llm.domains.images.rows import ImageExample
from codyra_llm.domains.images.towers import image_features, padded, text_features
from codyra_llm.engine.passes import ModelPasses
from codyra_llm.errors import UserError
from codyra_llm.example import Example
from codyra_llm.methods.hooks import AnswerTokens

ONLY_TEXT = 'asks for what a language model alone can give: {}; its Needs must have domains ("text",)'


class PicturePasses(ModelPasses):
    """`ModelPasses` on CLIP, around `Features`: classifies a picture's center crop among the classes of its own task.

    A row's NLL is -log softmax(s I E^T)_y, the image term of the loss alone: the text term is not defined on one row.
    """

    def nll(self, rows: Sequence[Example]) -> torch.Tensor:
        """Returns the NLL of the pictures' classes in nats, summed, with the method's term where one is set."""
        total = torch.zeros((), device=self.ranks.device)
        for places, logits, labels in self._told(rows):
            total = total + functional.cross_entropy(logits, labels, reduction="sum")
            if self.loss.term:
                added = self.loss.term(logits, AnswerTokens(labels, places, torch.zeros_like(places)), None)
                total = total if added is None else total + added
        return total

    def divergence(self, rows: Sequence[Example]) -> torch.Tensor:
        """Returns KL(before || now) of the pictures' classes in nats, summed; `before` is without branches."""
        with torch.no_grad(), without_branches(self.loss):
            before = [logits.log_softmax(-1) for _, logits, _ in self._told(rows)]
        now = [logits.log_softmax(-1) for _, logits, _ in self._told(rows)]
        parts = [
            functional.kl_div(after, known, reduction="sum", log_target=True)
            for after, known in zip(now, before, strict=True)
        ]
        return torch.stack(parts).sum()

    def prompt_states(self, rows: Sequence[Example]) -> torch.Tensor:
        """Raises UserError: a picture has no prompt."""
        raise UserError("the method " + ONLY_TEXT.format("states of prompts"))

    def embedding_means(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Raises UserError: a picture has no tokens."""
        raise UserError("the method " + ONLY_TEXT.format("embeddings of tokens"))

    def own_texts(self, count: int, length: int) -> list[Example]:
        """Raises UserError: CLIP generates no text."""
        raise UserError("the method " + ONLY_TEXT.format("texts of its own"))

    @property
    def _model(self) -> Any:
        return self.loss.model

    def _told(self, rows: Sequence[Example]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Returns (indices in `rows`, logits [pictures, classes of the task], labels) of each task, in one pass."""
        shown = [row for row in rows if isinstance(row, ImageExample)]
        owns = sorted({row.own for row in shown}, key=lambda own: own.start)
        space, device, model = shown[0].space, self.ranks.device, self._model
        pixels = space.pixels.to_score([row.picture for row in shown]).to(device)
        ids = padded([space.prompts[number] for own in owns for number in own], space.end).to(device)
        images, texts = self.loss(pixels, ids)
        logits = model.logit_scale.float().exp() * images @ texts.T
        found, first = [], 0
        for own in owns:
            places = torch.tensor([place for place, row in enumerate(shown) if row.own == own], device=device)
            labels = torch.tensor([row.answer[0] - own.start for row in shown if row.own == own], device=device)
            found.append((places, logits[places, first : first + len(own)], labels))
            first += len(own)
        return found

    def _readings(self, rows: Sequence[Example]) -> Iterator[tuple[Callable[[], object], bool]]:
        """Yields each picture's pass through its tower, then each prompt of the tasks' classes, once and unpadded."""
        shown = [row for row in rows if isinstance(row, ImageExample)]
        space, device, model = shown[0].space, self.ranks.device, self._model
        for number, counts in self._numbers(shown):
            pixels = space.pixels.to_score([shown[number].picture]).to(device)
            yield partial(image_features, model, pixels), counts
        classes = sorted({number for row in shown for number in row.own})
        for number, counts in self._numbers(classes):
            ids = torch.tensor([space.prompts[classes[number]]], device=device)
            yield partial(text_features, model, ids), counts
