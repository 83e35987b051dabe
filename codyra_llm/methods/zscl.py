"""ZSCL: distills the picture-text similarities of the model before the task (arXiv 2303.06628)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from codyra_llm.methods.base import Needs
from codyra_llm.methods.lwf import LwF, LwFSettings

if TYPE_CHECKING:
    from codyra_llm.config import RunConfig


@dataclass(frozen=True)
class ZSCLSettings(LwFSettings):
    """Settings of the distillation terms: those of LwF."""


class ZSCL(LwF):
    """Fixed-rank LoRA with the loss term alpha T^2 (KL of pictures over texts + KL of texts over pictures).

    Z [B, C] are the similarities of the step's pictures and the prompts of all tasks so far; Z0 are those of the model
    before the task:

        1/B sum_j KL(softmax(Z0_j / T) || softmax(Z_j / T)) + 1/C sum_c KL(softmax(Z0^T_c / T) || softmax(Z^T_c / T))

    Deliberate differences from the released code: the reference data is the task's own pictures with the class names of
    all tasks so far (released: 100,000 pictures of ImageNet with captions of Conceptual Captions, which this project
    does not include); in both terms both towers are the trained ones (released: trained pictures against the earlier
    model's texts, and vice versa); the teacher is the model before each task (released: before the first one); weights
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
        """Returns the sum of both terms, times the number of pictures; logits: [pictures, classes]."""
        share = len(logits) / logits.shape[1]
        return super().distance(logits, teacher) + share * super().distance(logits.T, teacher.T)
