"""Methods for the hooks that no method of the package uses yet; `register` adds them to the registry."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.adapter.merge import Deltas, Factors, ModuleRank
from codyra_llm.adapter.offset import add
from codyra_llm.data.encode import Example
from codyra_llm.methods import METHODS
from codyra_llm.methods.base import Method, Needs
from codyra_llm.methods.hooks import AnswerTokens, RowPasses, Slices


class Distilled(Method):
    """LoRA with KL(before || now) at the answer tokens, and a change of the gradients that is undone by Adam."""

    name = "distilled"
    has_teacher = True

    def output_loss(
        self, logits: torch.Tensor, tokens: AnswerTokens, teacher: torch.Tensor | None
    ) -> torch.Tensor | None:
        assert teacher is not None and not teacher.requires_grad and teacher.shape == logits.shape
        now, before = logits.log_softmax(-1), teacher.log_softmax(-1)
        return 5 * (before.exp() * (before - now)).sum()

    def on_gradient(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 0.5


class AGEM(Method):
    """A-GEM (arXiv 1812.00420): a gradient that conflicts with that of the memory loses the part that does."""

    name = "agem"

    def begin_step(self, step: int, passes: RowPasses) -> None:
        self.reference = passes.gradient(FIRST_ROWS)

    def before_step(self, slices: Slices) -> None:
        reference = [each.cut(self.reference[each.name]) for each in slices]
        own = [each.gradient for each in slices]
        conflict = slices.dot(own, reference)
        if conflict < 0:
            share = conflict / slices.dot(reference, reference)
            for each, other in zip(slices, reference, strict=True):
                each.gradient.sub_(other, alpha=share)
            assert abs(slices.dot(own, reference)) < 1e-3 * abs(conflict)


FIRST_ROWS = [Example([5, 6, 7], [8, 9]), Example([9, 8], [300]), Example([11, 40, 2, 7], [60, 61, 2])]


class Blocked(Method):
    """B alone trains, over an A without the directions that the task's inputs use most (after InfLoRA, 2404.00228)."""

    name = "blocked"

    def before_training(self, rows: Sequence[Example], passes: RowPasses) -> None:
        moments = passes.input_moments(rows[:7])
        self.directions = {name: torch.linalg.eigh(moment)[1][:, -3:] for name, moment in moments.items()}
        assert len({moment.data_ptr() for moment in moments.values()}) < len(moments)  # q, k and v read the same

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        layer.blocked_inputs = self.directions[name]
        layer.blocked_outputs = torch.eye(layer.out_features)[:, :2]
        layer.A.requires_grad_(False)

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        report, updates = super().finish(model)
        for name, (B, A) in updates.items():
            assert (A @ self.directions[name]).abs().max() < 1e-5
            assert not B[:2].any() and B[2:].any()
        return report, updates


class Dense(Method):
    """Full fine-tuning of the projections: the update is dense, its A is the identity."""

    name = "dense"

    def start_branch(self, name: str, layer: CoDyRALinear) -> None:
        inputs = layer.in_features
        layer.A = nn.Parameter(torch.eye(inputs), requires_grad=False)
        layer.B = nn.Parameter(torch.zeros(layer.out_features, inputs))
        layer.gate = nn.Parameter(torch.ones(inputs), requires_grad=False)


class Dark(Method):
    """Dark experience replay (arXiv 2004.07211): kept rows keep the logits of their task's end."""

    name = "dark"
    needs = Needs(first_task=True)

    def replayed(self, task: str, earlier: Mapping[str, Sequence[Example]]) -> Sequence[Example]:
        return [row for rows in earlier.values() for row in rows[:4]]

    def before_training(self, rows: Sequence[Example], passes: RowPasses) -> None:
        self.own = len(rows)

    def output_loss(
        self, logits: torch.Tensor, tokens: AnswerTokens, teacher: torch.Tensor | None
    ) -> torch.Tensor | None:
        total = logits.new_zeros(())
        for at, (row, place) in enumerate(zip(tokens.rows.tolist(), tokens.places.tolist(), strict=True)):
            if row >= self.own:
                total = total + (logits[at] - self.kept[f"logits.{row - self.own}"][place]).square().mean()
        return total

    def after_training(self, rows: Sequence[Example], passes: RowPasses) -> None:
        for number, logits in enumerate(passes.outputs(rows[:4], torch.clone)):
            self.kept[f"logits.{number}"] = logits


class Averaged(Method):
    """LoRA whose entries are averaged."""

    name = "averaged"

    @staticmethod
    def combine(settings: Any, updates: Sequence[Factors | None]) -> Factors:
        B, A = Method.combine(settings, updates)
        return B / len(updates), A


class Routed(Method):
    """A LoRA for each task, none of them merged; an oracle says whose rows are answered."""

    name = "routed"
    needs = Needs(first_task=True)

    def prepare(self, model: nn.Module, task: str, total_steps: int) -> Any:
        self.task = task
        return super().prepare(model, task, total_steps)

    def finish(self, model: nn.Module) -> tuple[list[ModuleRank], Deltas]:
        report, updates = super().finish(model)
        for name, (B, A) in updates.items():
            self.kept |= {f"{self.task}/{name}.B": B, f"{self.task}/{name}.A": A}
        return report, {}

    @contextmanager
    def serving(self, model: nn.Module, task: str | None) -> Iterator[None]:
        with ExitStack() as stack:
            for name in [
                key[len(f"{task}/") : -2] for key in self.kept if key.startswith(f"{task}/") and key[-1] == "B"
            ]:
                factors = (self.kept[f"{task}/{name}.{part}"] for part in "BA")
                stack.callback(add(model.get_submodule(name), *factors).remove)
            yield


def register() -> None:
    methods = (Distilled, AGEM, Blocked, Dense, Dark, Averaged, Routed)
    METHODS.update({method.name: method for method in methods})
