"""LwF: distills the predictions of the model before the task, on the task's own rows (arXiv 1606.09282)."""

from dataclasses import dataclass

import torch

from codyra_llm.methods.base import Method
from codyra_llm.methods.hooks import AnswerTokens
from codyra_llm.options import ABOVE_ZERO, AT_LEAST_ZERO, option


@dataclass(frozen=True)
class LwFSettings:
    """Settings of the distillation term: its weight and temperature."""

    strength: float = option(1.0, "alpha: weight of the distillation term; 0: lora", within=AT_LEAST_ZERO)
    temperature: float = option(2.0, "T: both distributions are softmax(logits / T)", within=ABOVE_ZERO)


class LwF(Method):
    """Fixed-rank LoRA with the loss term alpha T^2 KL(before || now), a mean over answer tokens as the loss is.

    The teacher is the model itself with its branches switched off, so nothing is kept; it costs a forward pass. With
    T = 1 this is the KL penalty to the previous model. TRACE's LwF reverses the divergence, omits T^2, includes prompt
    and padding, and looks up the teacher's logits by the number of the step; none of this is done here. For images, an
    answer is a picture's class among those of its task, so the term preserves the similarities of the step's pictures
    to these classes; `zscl` preserves those to earlier tasks' classes as well.
    """

    name = "lwf"
    summary = "LwF: distillation from the model before the task, on the task's rows"
    Settings = LwFSettings
    has_teacher = True

    @property
    def relative_cost(self) -> float:
        """1.5: one forward pass more than LoRA's step, a forward pass and a backward pass to the inputs."""
        return 1.5

    def output_loss(
        self, logits: torch.Tensor, tokens: AnswerTokens, teacher: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Returns alpha times the distance to the teacher, summed over tokens."""
        if not self.settings.strength or teacher is None:
            return None
        return self.settings.strength * self.distance(logits, teacher)

    def distance(self, logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Returns T^2 KL(before || now), summed over tokens, of logits [tokens, vocabulary]."""
        return distillation(logits, teacher, self.settings.temperature)


def distillation(logits: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns T^2 KL(teacher || logits) of the distributions at temperature T, summed over all rows of logits."""
    now, before = ((each / temperature).log_softmax(-1) for each in (logits, teacher))
    return temperature**2 * (before.exp() * (before - now)).sum()
