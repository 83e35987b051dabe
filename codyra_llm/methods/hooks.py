"""The hooks of a method in the training loop of a task. They are independent of how ZeRO partitions a parameter."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import torch
from torch import nn

from codyra_llm.adapter.merging import Deltas
from codyra_llm.adapter.optimizer import sum_over_ranks

if TYPE_CHECKING:
    from codyra_llm.example import Example


Value = TypeVar("Value")


@dataclass(frozen=True)
class Slice:
    """This rank's part of one trainable parameter while the optimizer steps it.

    Attributes:
        name: of the parameter: "<projection>.A", "<projection>.B" or "<projection>.gate".
        value: [length], fp32; a view, so writing to it changes the parameter.
        gradient: [length]; the gradient of the step's mean loss over all ranks, clipped to train.max_grad_norm; a view.
        offset: where the slice starts in the flattened parameter.
    """

    name: str
    value: torch.Tensor
    gradient: torch.Tensor
    offset: int

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """Returns the same part [length] of a tensor of the parameter's shape, in the slice's dtype, on its device."""
        return whole.flatten()[self.offset : self.offset + len(self.value)].to(self.value)


class Slices(list[Slice]):
    """This rank's slices of the parameters that one call of the optimizer steps.

    Above ZeRO stage 0 the optimizer is called for each parameter group separately; where gates are frozen, A and B of
    all projections are the only group.

    Args:
        partitioned: whether each rank has a different part of the parameters, as above stage 0.
    """

    def __init__(self, slices: Sequence[Slice], partitioned: bool) -> None:
        super().__init__(slices)
        self.partitioned = partitioned

    def dot(self, left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
        """Returns the dot product of two vectors over all ranks' slices, each given as one tensor per slice."""
        products = [torch.dot(a.double(), b.double()) for a, b in zip(left, right, strict=True)]
        total = torch.stack(products).sum() if products else torch.zeros((), dtype=torch.float64)
        return float(sum_over_ranks(total) if self.partitioned else total)


@dataclass(frozen=True)
class AnswerTokens:
    """The answer tokens that the rows of the logits belong to; for images, each picture is a token, each class an id.

    Attributes:
        targets: [tokens], ids; for images, columns of the logits.
        rows: [tokens]; the row of each token, numbered over the task's own rows followed by the replayed ones.
        places: [tokens]; the position of each token among its row's answer tokens, from 0.
    """

    targets: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor


class RowPasses(Protocol):
    """Extra passes over rows with the current weights, outside of the steps; results are the same on every rank.

    Gradients are those of the branches, by parameter name, unpartitioned and not clipped; before training there are no
    branches. For images, a row's answer is the class of its picture, one token, among the classes of its own task.
    """

    def gradient(self, rows: "Sequence[Example]") -> dict[str, torch.Tensor]:
        """Returns the gradient of the rows' mean loss per answer token."""

    def divergence_gradient(self, rows: "Sequence[Example]") -> dict[str, torch.Tensor]:
        """Returns the gradient of the mean KL(before || now) per answer token; before: the model without branches."""

    def mean_of_gradients(
        self, rows: "Sequence[Example]", of: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Returns the mean over rows of the function `of` of each row's gradient.

        The gradient is that of the negative log-likelihood of the row's answer in nats, summed over its tokens.
        """

    def mean_of_weight_gradients(
        self, rows: "Sequence[Example]", of: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Returns the same as `mean_of_gradients` for each projection's weight [out_features, in_features].

        The result, by projection, is as large as the weights; it is available while there are branches.
        """

    def outputs(self, rows: "Sequence[Example]", of: Callable[[torch.Tensor], torch.Tensor]) -> "list[torch.Tensor]":
        """Returns the function `of` of each row's logits [answer tokens, vocabulary], fp32, on the CPU.

        The function must return one value, or one row of values, for each token.
        """

    def input_moments(self, rows: "Sequence[Example]") -> dict[str, torch.Tensor]:
        """Returns the mean over all tokens of x x^T [in_features, in_features], fp32, of each projection's input x.

        Projections that read the same input share a tensor. The result is as large as the projections: compute it only
        where it is needed. For images, the tokens are the patches of the rows' pictures in the image tower, and the
        tokens of the class prompts of the rows' tasks in the text tower.
        """

    def prompt_states(self, rows: "Sequence[Example]") -> torch.Tensor:
        """Returns the mean hidden state after the middle layer over each row's prompt: [rows, hidden_size], fp32."""

    def embedding_means(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Returns the mean input embedding of each row's ids: [rows, hidden_size], at least fp32."""

    def rows_of(self, step: int) -> Sequence[int]:
        """Returns the numbers of a step's rows over all ranks; replayed rows are numbered after the task's own."""

    def own_texts(self, count: int, length: int) -> "list[Example]":
        """Returns texts that the model generates before a task, of at most `length` tokens.

        The first token of a text is the row's prompt, all others are its answer.
        """

    def output_magnitudes(self, rows: "Sequence[Example]") -> dict[str, torch.Tensor]:
        """Returns the mean over all tokens of |y| [out_features], fp32, of the output y of each projection."""


def of_inputs(moments: Mapping[str, torch.Tensor], of: Callable[[str, torch.Tensor], Value]) -> dict[str, Value]:
    """Returns a function of each second moment, by projection; projections that share a moment share its value.

    Args:
        moments: as returned by `RowPasses.input_moments`.
        of: called with the name of the first projection that has the moment, and the moment.
    """
    values: dict[int, Value] = {}
    for name, moment in moments.items():
        if id(moment) not in values:
            values[id(moment)] = of(name, moment)
    return {name: values[id(moment)] for name, moment in moments.items()}


Penalty = tuple[float, Mapping[str, torch.Tensor]]  # (value, gradient by parameter name)


class Hooks:
    """The hooks of the training loop; a hook that is not overridden does nothing and costs nothing."""

    has_teacher: ClassVar[bool] = False  # whether `output_loss` gets the logits of the model without its branches
    among_all: bool = False  # images: whether the logits of `output_loss` cover the classes of all tasks so far

    def __init__(self) -> None:
        # state gathered within a task, whole on every rank; part of a checkpoint in the middle of the task
        self.gathered: dict[str, torch.Tensor] = {}

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Measures what the method needs on the model before it has branches, on the task's own rows."""

    def begin_step(self, step: int, passes: RowPasses) -> None:
        """Runs before the passes of a step, to compute what the step needs of other rows; costs extra passes."""

    def output_loss(
        self, logits: torch.Tensor, tokens: AnswerTokens, teacher: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Returns a term that is added to the loss, summed over answer tokens as the loss is; None: no term.

        Args:
            logits: [tokens, vocabulary], fp32, of some of the answer tokens. For images, [pictures, classes]: all
                pictures of one task in the step over the classes of this task or, with `among_all`, all pictures of the
                step over the classes of all tasks so far.
            tokens: the targets and rows of the logits.
            teacher: like `logits`, without gradient, of the model before the task; None without `has_teacher`.
        """
        return None

    def on_gradient(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """Returns a linear function of a parameter's whole gradient of one micro batch, before ranks are averaged."""
        return gradient

    def penalty(self, branches: Deltas) -> Penalty:
        """Returns a loss term on the branches alone and its closed-form gradient; called once per optimizer step.

        Args:
            branches: (B [out_features, rank], A [rank, in_features]) of each projection, whole and detached.

        Returns:
            The value, and the gradient for "<projection>.A" and "<projection>.B" where there is one.
        """
        return 0.0, {}

    def before_step(self, slices: Slices) -> None:
        """May change the gradients in place before Adam reads them."""

    def after_step(self, slices: Slices) -> None:
        """May change the values in place after Adam has updated them; the gradients are those of the step."""

    def end_step(self, loss: float) -> None:
        """Receives the mean loss per answer token of a completed step, in nats, over all ranks."""

    def after_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """Measures what the method needs at the end of a task's training, on the task's own rows."""

    def routes(self, rows: "Sequence[Example]", passes: RowPasses) -> list[str] | None:
        """Returns the task whose unmerged part (`serving`) answers each test row; None: the row's own task (an oracle).

        Args:
            rows: the test rows.
            passes: over the model without the unmerged part.
        """
        return None

    def serving(self, model: nn.Module, task: str | None) -> AbstractContextManager[object]:
        """Returns a context in which the method's unmerged part is active at inference; by default there is none.

        Args:
            model: the plain model, whose weights may be partitioned: add to it by forward hooks (`adapter.offset.add`).
            task: the task whose test rows are answered; None: rows of a general-ability suite.
        """
        return nullcontext()


NO_HOOKS = Hooks()


def overrides(hooks: Hooks | type[Hooks], name: str) -> bool:
    """True if a method overrides the hook `name`."""
    return getattr(hooks if isinstance(hooks, type) else type(hooks), name) is not getattr(Hooks, name)
