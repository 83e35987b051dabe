"""What a method may do inside the training of a task. Nothing here knows how ZeRO partitions a parameter."""

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
        value: [length], fp32; a view, so what is written to it stays.
        gradient: [length]; the gradient of the step's mean loss over all ranks, clipped to train.max_grad_norm; a view.
        offset: where the slice starts in the flattened parameter.
    """

    name: str
    value: torch.Tensor
    gradient: torch.Tensor
    offset: int

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """The same part [length] of a tensor of the parameter's shape, on the slice's device."""
        return whole.flatten()[self.offset : self.offset + len(self.value)].to(self.value)


class Slices(list[Slice]):
    """The slices of one call of the optimizer: at ZeRO stage 0 and at stages 1 to 3 of all parameters that train.

    Args:
        partitioned: whether each rank has another part of the parameters, as it has above stage 0.
    """

    def __init__(self, slices: Sequence[Slice], partitioned: bool) -> None:
        super().__init__(slices)
        self.partitioned = partitioned

    def dot(self, left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
        """The dot product of two vectors over all parameters, each given as one tensor for each slice."""
        products = [torch.dot(a.double(), b.double()) for a, b in zip(left, right, strict=True)]
        total = torch.stack(products).sum() if products else torch.zeros((), dtype=torch.float64)
        return float(sum_over_ranks(total) if self.partitioned else total)


@dataclass(frozen=True)
class AnswerTokens:
    """The answer tokens that logits are given for; of images, a picture is one, and its classes are the vocabulary.

    Attributes:
        targets: [tokens], ids; of images, columns of the logits.
        rows: [tokens]; the row of each, a number in the task's own rows followed by the replayed ones.
        places: [tokens]; which of its row's answer tokens each is, from 0.
    """

    targets: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor


class RowPasses(Protocol):
    """Passes over any rows at the weights as they are, apart from those of a step; the same on every rank.

    Gradients are those of the branches, by parameter name, whole, not clipped; before training there are no branches.
    Of images, a row's answer is the class of its picture, one token, among the classes of its own task.
    """

    def gradient(self, rows: "Sequence[Example]") -> dict[str, torch.Tensor]:
        """The gradient of the mean loss per answer token of some rows."""

    def divergence_gradient(self, rows: "Sequence[Example]") -> dict[str, torch.Tensor]:
        """The gradient of the mean KL(before || now) per answer token, `before` the model without its branches."""

    def mean_of_gradients(
        self, rows: "Sequence[Example]", of: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The mean over rows of a function of each row's gradient.

        The gradient is that of the negative log-likelihood of the row's answer in nats, summed over its tokens.
        """

    def mean_of_weight_gradients(
        self, rows: "Sequence[Example]", of: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The same of the gradient for each projection's weight [out_features, in_features], by projection.

        It is as large as they are, and can be asked for while there are branches.
        """

    def outputs(self, rows: "Sequence[Example]", of: Callable[[torch.Tensor], torch.Tensor]) -> "list[torch.Tensor]":
        """A function of each row's logits [answer tokens, vocabulary], fp32; what it gives comes back on the CPU.

        It must give one value, or one row of values, for each token.
        """

    def input_moments(self, rows: "Sequence[Example]") -> dict[str, torch.Tensor]:
        """The mean over all tokens of x x^T [in_features, in_features], fp32, of the input x of each projection.

        Projections that read the same input share a tensor. It is as large as they are: ask for it where it is needed.
        Of images, the tokens are the patches of the rows' pictures and, in the other tower, those of the prompts of
        their tasks' classes.
        """

    def prompt_states(self, rows: "Sequence[Example]") -> torch.Tensor:
        """The mean over a row's prompt tokens of the hidden state after the middle layer: [rows, hidden_size], fp32."""

    def embedding_means(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """The mean of the input embeddings of each row's ids: [rows, hidden_size], at least fp32."""

    def rows_of(self, step: int) -> Sequence[int]:
        """The rows of an optimizer step over all ranks, as numbers in the task's own rows followed by replayed ones."""

    def own_texts(self, count: int, length: int) -> "list[Example]":
        """Texts that the model writes itself before a task, of at most `length` tokens, every one of them learned."""

    def output_magnitudes(self, rows: "Sequence[Example]") -> dict[str, torch.Tensor]:
        """The mean over all tokens of |y| [out_features], fp32, of the output y of each projection."""


def of_inputs(moments: Mapping[str, torch.Tensor], of: Callable[[str, torch.Tensor], Value]) -> dict[str, Value]:
    """A function of each second moment, by projection; projections that share a moment share its value.

    Args:
        of: gets the name of the first projection that has the moment, and the moment.
    """
    values: dict[int, Value] = {}
    for name, moment in moments.items():
        if id(moment) not in values:
            values[id(moment)] = of(name, moment)
    return {name: values[id(moment)] for name, moment in moments.items()}


Penalty = tuple[float, Mapping[str, torch.Tensor]]  # its value, and its gradient by parameter name


class Hooks:
    """The hooks of the training loop; by default they do nothing, and the loop costs nothing for those."""

    has_teacher: ClassVar[bool] = False  # whether `output_loss` is given the logits of the model without its branches
    among_all: bool = False  # of images: whether its logits are among the classes of all tasks so far

    def __init__(self) -> None:
        # what it has gathered within the task, whole on every rank: a checkpoint in the middle of the task holds it
        self.gathered: dict[str, torch.Tensor] = {}

    def before_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """What is to be measured on the model as the task finds it, before it has branches, on the task's own rows."""

    def begin_step(self, step: int, passes: RowPasses) -> None:
        """What a step needs to know of other rows, before its own passes; they cost extra passes."""

    def output_loss(
        self, logits: torch.Tensor, tokens: AnswerTokens, teacher: torch.Tensor | None
    ) -> torch.Tensor | None:
        """A term that is added to the loss, summed over answer tokens as the loss is; None: no term.

        Args:
            logits: [tokens, vocabulary], fp32, of some of the answer tokens. Of images, [pictures, classes]: of all
                pictures of one task in the step, among its classes; or of all of them (`among_all`).
            teacher: [tokens, vocabulary], without gradient: the model's as the task found it (`has_teacher`).
        """
        return None

    def on_gradient(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """A linear change of a parameter's whole gradient of one micro batch, before ranks are averaged."""
        return gradient

    def penalty(self, branches: Deltas) -> Penalty:
        """A term on the branches alone, and its gradient in closed form; asked for once in each optimizer step.

        Args:
            branches: (B [out_features, rank], A [rank, in_features]) of each projection, whole and detached.

        Returns:
            The value, and the gradient of "<projection>.A" and "<projection>.B" where there is one.
        """
        return 0.0, {}

    def before_step(self, slices: Slices) -> None:
        """May change the gradients (in place) before Adam sees them."""

    def after_step(self, slices: Slices) -> None:
        """May change the values (in place) that Adam has updated; the gradients are those of the step."""

    def end_step(self, loss: float) -> None:
        """The mean loss per answer token of a step that was taken, in nats, over all ranks."""

    def after_training(self, rows: "Sequence[Example]", passes: RowPasses) -> None:
        """What is to be measured at the end of a task's training, on the task's own rows."""

    def routes(self, rows: "Sequence[Example]", passes: RowPasses) -> list[str] | None:
        """The task whose live part (`serving`) answers each test row; None: its own, as an oracle would say.

        Args:
            passes: over the model without what is live.
        """
        return None

    def serving(self, model: nn.Module, task: str | None) -> AbstractContextManager[object]:
        """A context in which what is live at inference, beside the merged weights, takes part; by default nothing is.

        Args:
            model: plain, whose weights may be partitioned: add what is live by forward hooks (`adapter.offset.add`).
            task: whose test rows are answered; None: those of a suite of general ability.
        """
        return nullcontext()


NO_HOOKS = Hooks()


def overrides(hooks: Hooks | type[Hooks], name: str) -> bool:
    """Whether a method has a hook of its own."""
    return getattr(hooks if isinstance(hooks, type) else type(hooks), name) is not getattr(Hooks, name)
