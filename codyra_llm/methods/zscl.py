"""ZSCL: how alike pictures and texts are stays as it was before the task (arXiv 2303.06628)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from codyra_llm.methods.base import Needs
from codyra_llm.methods.lwf import LwF, LwFSettings

if TYPE_CHECKING:
    from codyra_llm.config import RunConfig


@dataclass(frozen=True)
class ZSCLSettings(LwFSettings):
    """How strongly the earlier model holds the new one."""


class ZSCL(LwF):
    """Fixed-rank LoRA whose loss has alpha T^2 (KL of pictures among texts + KL of texts among pictures).

    With similarities Z [B, C] of the step's pictures and the prompts of all tasks so far, now and (Z0) as the model
    before the task has them:

        1/B sum_j KL(softmax(Z0_j / T) || softmax(Z_j / T)) + 1/C sum_c KL(softmax(Z0^T_c / T) || softmax(Z^T_c / T))

    Deliberate differences from what was released: the reference data is the task's own pictures with the class names of
    all tasks so far (released: 100,000 pictures of ImageNet with captions of Conceptual Captions, which are not kept
    here); both towers are those that learn, in both terms (released: pictures against the earlier model's texts, and
    the other way round); the teacher is the model before each task (released: that before the first one); and weights
    are not averaged over a task's steps (`ema` does that).
    """

    name = "zscl"
    summary = "ZSCL, of images: similarities to all classes so far are distilled from the model before the task"
    Settings = ZSCLSettings
    needs = Needs(domains=("images",))

    def __init__(self, config: "RunConfig") -> None:
        super().__init__(config)
        self.among_all = bool(self.settings.strength)

    def distance(self, logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Both terms, times the number of pictures; of logits [pictures, classes]."""
        share = len(logits) / logits.shape[1]
        return super().distance(logits, teacher) + share * super().distance(logits.T, teacher.T)
