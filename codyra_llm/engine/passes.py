"""Passes over single rows, outside of training steps: gradients, outputs, inputs of projections."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.adapter.config import CoDyRAConfig
from codyra_llm.adapter.injection import find_targets
from codyra_llm.adapter.prompts import mean_state
from codyra_llm.data.batches import IGNORED, GlobalBatches, collate
from codyra_llm.distributed.ranks import Ranks, all_gather
from codyra_llm.engine.loss import AnswerLoss
from codyra_llm.engine.retention import ANSWER
from codyra_llm.engine.state import trainable
from codyra_llm.engine.zero import gathered_for_inference
from codyra_llm.example import Example
from codyra_llm.generation.sample import sample_texts
from codyra_llm.methods.hooks import AnswerTokens, Hooks, overrides

ROWS_AT_ONCE = 64  # whose embeddings are in memory together


def measure_before(
    hooks: Hooks, rows: Sequence[Example], before: "Callable[[], AbstractContextManager[ModelPasses]]"
) -> None:
    """Lets a method measure what it needs on the model before a task (`Hooks.before_training`).

    Args:
        hooks: the method's hooks.
        rows: the training rows of the task.
        before: opens passes over that model.
    """
    if overrides(hooks, "before_training"):
        with before() as passes:
            hooks.before_training(rows, passes)


@contextmanager
def passes_before(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: CoDyRAConfig,
    batches: GlobalBatches,
    seed: int,
    gather: str,
    ranks: Ranks,
    module: Callable[[PreTrainedModel], Any] = AnswerLoss,
    passes: "Callable[..., ModelPasses] | None" = None,
) -> "Iterator[ModelPasses]":
    """A context with passes over the model before a task, without branches, and with texts that the model generates.

    Args:
        model: the model; switched to evaluation mode.
        tokenizer: its tokenizer.
        adapter: specifies which projections will have a branch.
        batches: the batches of the task.
        seed: seed of the generated texts.
        gather: `how` of `gathered_for_inference`.
        ranks: the ranks of the run.
        module: `engine.learning.Learning.module`; by default that of answers.
        passes: `engine.learning.Learning.passes`; by default that of answers.
    """
    projections = {name: model.get_submodule(name) for name in find_targets(model, adapter)}
    with gathered_for_inference(model.eval(), gather, ranks) as synced:

        def write(count: int, length: int) -> list[list[int]]:
            return sample_texts(model, tokenizer, count, length, f"{seed}/{batches.task}", ranks, synced)

        yield (passes or ModelPasses)(module(model), projections, batches.pad_token_id, ranks, write=write)


class ModelPasses:
    """`methods.hooks.RowPasses` on a model: each rank runs the passes of its share of the rows, on whole parameters.

    Args:
        loss: module around the model; an engine's module during training, else one that is `gathered_for_inference`.
        projections: the projections whose inputs can be read, by name.
        pad_token_id: the padding token.
        ranks: the ranks that share the rows.
        after_pass: called after each pass, which an engine at stage 3 needs.
        write: generates (count) texts of at most (length) tokens; returns none during training.
        most: the most rows in a pass where no result per row is needed.
        rows_of: the rows of each step, during training.
    """

    def __init__(
        self,
        loss: AnswerLoss,
        projections: Mapping[str, nn.Module],
        pad_token_id: int,
        ranks: Ranks,
        after_pass: Callable[[], None] = lambda: None,
        write: Callable[[int, int], list[list[int]]] = lambda count, length: [],
        most: int = 1,
        rows_of: Callable[[int], Sequence[int]] = lambda step: (),
    ) -> None:
        self.loss, self.projections, self.pad_token_id, self.ranks = loss, projections, pad_token_id, ranks
        self.after_pass, self.write, self.most, self.rows_of = after_pass, write, most, rows_of
        self.busy = False

    @contextmanager
    def apart(self) -> Iterator[None]:
        """A context for passes outside of steps: the method's term on the outputs is left out."""
        self.busy, term = True, self.loss.term
        self.loss.term = None
        try:
            yield
        finally:
            self.busy, self.loss.term = False, term

    def gradient(self, rows: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Returns the mean gradient of the rows' NLL; see `RowPasses.gradient`."""
        return self._mean_gradient(rows, self.nll)

    def divergence_gradient(self, rows: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Returns the mean gradient of the rows' divergence; see `RowPasses.divergence_gradient`."""
        return self._mean_gradient(rows, self.divergence)

    def _mean_gradient(
        self, rows: Sequence[Example], run: Callable[[Sequence[Example]], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        tokens, ordered = sum(row.learned for row in rows), sorted(rows, key=len)
        together = [ordered[first : first + self.most] for first in range(0, len(ordered), self.most)]
        return {name: total / tokens for name, total in self._sum(together, lambda gradient: gradient, run).items()}

    def mean_of_gradients(
        self, rows: Sequence[Example], of: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Returns the mean of a function of each row's gradient; see `RowPasses.mean_of_gradients`."""
        sums = self._sum([[row] for row in rows], of, self.nll)
        return {name: total / len(rows) for name, total in sums.items()}

    def mean_of_weight_gradients(
        self, rows: Sequence[Example], of: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Returns the mean of a function of each row's weight gradient; see `RowPasses.mean_of_weight_gradients`."""
        seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        sums: dict[str, torch.Tensor] = {}

        def note(name: str, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            seen[name] = inputs[0].detach(), output

        with _hooked(self.projections, nn.Module.register_forward_hook, note):
            for number, counts in self._numbers(rows):
                loss = self.nll([rows[number]])
                gradients = torch.autograd.grad(loss, [output for _, output in seen.values()])
                self.after_pass()
                for (name, (x, _)), of_output in zip(seen.items(), gradients, strict=True):
                    found = of(of_output.flatten(0, -2).double().T @ x.flatten(0, -2).double())
                    total = sums.setdefault(name, torch.zeros_like(found))
                    if counts:
                        total += found
        for total in sums.values():
            dist.all_reduce(total)
        return {name: (total / len(rows)).float().cpu() for name, total in sums.items()}

    def outputs(self, rows: Sequence[Example], of: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        """Returns a function of each row's logits; see `RowPasses.outputs`."""
        own: dict[int, torch.Tensor] = {}
        for number, counts in self._numbers(rows):
            parts: list[torch.Tensor] = []
            self.loss.term = partial(_append_to, parts, of)
            with torch.no_grad():
                self.nll([rows[number]])
            if counts:
                own[number] = torch.cat(parts)
        self.loss.term = None
        every = {number: value for of_rank in all_gather(own) for number, value in of_rank.items()}
        return [every[number] for number in range(len(rows))]

    def input_moments(self, rows: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Returns the second moments of the projections' inputs; see `RowPasses.input_moments`."""
        sums: dict[str, torch.Tensor] = {}
        same: dict[str, str] = {}  # the first projection that read the same input
        last: list[Any] = [None, None, ""]  # tensor, where it is, the first projection that read it

        def add(counts: bool, name: str, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            # at ZeRO stage 3 each projection gets its own view; the tensor is kept, so that its memory is not reused
            place = inputs[0].data_ptr(), inputs[0].shape
            if place == last[1]:
                same[name] = last[2]
            last[:] = inputs[0], place, same.get(name, name)
            if name not in same:
                x = inputs[0].detach().flatten(0, -2).float()
                sums.setdefault(name, x.new_zeros(x.shape[1], x.shape[1]))
                if counts:
                    sums[name].addmm_(x.T, x)

        counted = self._read(rows, nn.Module.register_forward_pre_hook, add)
        for name, total in sums.items():
            dist.all_reduce(total)
            total /= counted[name]
        return {name: sums[same.get(name, name)] for name in self.projections}

    def prompt_states(self, rows: Sequence[Example]) -> torch.Tensor:
        """Returns the mean hidden state of each row's prompt; see `RowPasses.prompt_states`."""
        layers = self.loss.model.get_decoder().layers
        states: list[torch.Tensor] = []

        def note(name: str, module: nn.Module, inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            states[:] = [(output if isinstance(output, torch.Tensor) else output[0]).detach()]

        own: dict[int, torch.Tensor] = {}
        middle = {"": layers[len(layers) // 2]}
        with _hooked(middle, nn.Module.register_forward_hook, note), torch.no_grad():
            for number, counts in self._numbers(rows):
                self.nll([rows[number]])
                if counts:
                    own[number] = states[0][0, : len(rows[number].prompt)].float().mean(0).cpu()
        every = {number: state for of_rank in all_gather(own) for number, state in of_rank.items()}
        return torch.stack([every[number] for number in range(len(rows))])

    def embedding_means(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Returns the mean embedding of each row ; see `RowPasses.embedding_means`. All ranks compute all of it."""
        embedding, means = self.loss.model.get_input_embeddings(), []
        for first in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[first : first + ROWS_AT_ONCE]
            ids = torch.tensor([token for row in part for token in row], device=self.ranks.device)
            with torch.no_grad():
                states = embedding(ids[None])[0].split([len(row) for row in part])
            means += [mean_state(of_row).cpu() for of_row in states]
        return torch.stack(means)

    def own_texts(self, count: int, length: int) -> list[Example]:
        """Returns texts that the model generates; see `RowPasses.own_texts`."""
        return [Example(text[:1], text[1:]) for text in self.write(count, length)]

    def output_magnitudes(self, rows: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Returns the mean absolute outputs of the projections; see `RowPasses.output_magnitudes`."""
        sums: dict[str, torch.Tensor] = {}

        def add(counts: bool, name: str, module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            found = output.detach().flatten(0, -2).double().abs().sum(0)
            sums[name] = sums.get(name, torch.zeros_like(found)) + found * counts

        counted = self._read(rows, nn.Module.register_forward_hook, add)
        for total in sums.values():
            dist.all_reduce(total)
        return {name: (total / counted[name]).float().cpu() for name, total in sums.items()}

    def _read(
        self, rows: Sequence[Example], register: Callable[..., RemovableHandle], hook: Callable[..., None]
    ) -> dict[str, int]:
        """Reads this rank's rows; each projection calls the hook with whether the row counts and its own name first.

        Returns:
            The number of tokens of counted rows that each projection has read, over all ranks.
        """
        counting, tokens = [False], dict.fromkeys(self.projections, 0)

        def watch(name: str, module: nn.Module, inputs: tuple[torch.Tensor, ...], *output: Any) -> None:
            tokens[name] += counting[0] * inputs[0].shape[:-1].numel()
            hook(counting[0], name, module, inputs, *output)

        with _hooked(self.projections, register, watch), torch.no_grad():
            for read, counts in self._readings(rows):
                counting[0] = counts
                read()
        every = torch.tensor(list(tokens.values()), device=self.ranks.device)
        dist.all_reduce(every)
        return dict(zip(tokens, every.tolist(), strict=True))

    def _readings(self, rows: Sequence[Example]) -> Iterator[tuple[Callable[[], object], bool]]:
        """Yields (pass to run, whether it counts) of this rank's share of the rows."""
        for number, counts in self._numbers(rows):
            yield partial(self.nll, [rows[number]]), counts

    def _sum(
        self,
        passes: Sequence[Sequence[Example]],
        of: Callable[[torch.Tensor], torch.Tensor],
        run: Callable[[Sequence[Example]], torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Sums a function of gradients over passes, in float64 to be independent of the world size; fp32, on the CPU.

        Args:
            passes: the rows of each pass.
            of: the function of a pass's gradient.
            run: runs a pass; returns a scalar.
        """
        named = [(name, parameter) for name, parameter, _ in trainable(self.loss.model)]
        shapes = [getattr(parameter, "ds_shape", parameter.shape) for _, parameter in named]
        sums = [torch.zeros(shape, dtype=torch.float64, device=self.ranks.device) for shape in shapes]
        for number, counts in self._numbers(passes):
            # not `backward`: the engine must not see these gradients
            gradients = torch.autograd.grad(run(passes[number]), [parameter for _, parameter in named])
            self.after_pass()
            if counts:
                for total, gradient in zip(sums, gradients, strict=True):
                    total += of(gradient.double())
        for total in sums:
            dist.all_reduce(total)
        return {name: total.float().cpu() for (name, _), total in zip(named, sums, strict=True)}

    def _numbers(self, passes: Sequence[object]) -> Iterator[tuple[int, bool]]:
        """Yields (number, whether it counts) of this rank's passes: at stage 3 every rank must take part in each."""
        for first in range(0, len(passes), self.ranks.size):
            number = first + self.ranks.rank
            yield (number, True) if number < len(passes) else (first, False)

    def nll(self, rows: Sequence[Example]) -> torch.Tensor:
        """Returns the NLL of the rows' answers in nats, summed over their tokens, from one pass of this rank."""
        loss: torch.Tensor = self.loss(*self._collated(rows))
        return loss

    def divergence(self, rows: Sequence[Example]) -> torch.Tensor:
        """Returns KL(before || now) in nats, summed over answer tokens; `before` is the model without its branches."""
        ids, labels = self._collated(rows)
        kinds = functional.pad((labels[:, 1:] != IGNORED) * ANSWER, (0, 1))
        found: torch.Tensor = self.loss(ids, labels, kinds=kinds)[ANSWER]
        return found

    def _collated(self, rows: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        batch, device = collate(rows, self.pad_token_id), self.ranks.device
        return batch.input_ids.to(device), batch.labels.to(device)


@contextmanager
def _hooked(
    projections: Mapping[str, nn.Module], register: Callable[..., RemovableHandle], hook: Callable[..., None]
) -> Iterator[None]:
    """A context in which each projection calls a hook, whose first argument is its name."""
    handles = [register(module, partial(hook, name)) for name, module in projections.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _append_to(
    parts: list[torch.Tensor],
    of: Callable[[torch.Tensor], torch.Tensor],
    logits: torch.Tensor,
    tokens: AnswerTokens,
    teacher: torch.Tensor | None,
) -> None:
    """Appends a function of the logits to `parts`; a term (`Term`) that adds nothing to the loss."""
    parts.append(of(logits).cpu())
