"""CoDyRA and what it is compared with, one file each, behind one small interface."""

from codyra_llm.methods.codyra import CoDyRA, Prepared
from codyra_llm.methods.lora import FixedRankLoRA

METHODS: dict[str, type[CoDyRA]] = {"codyra": CoDyRA, "lora": FixedRankLoRA}

__all__ = ["METHODS", "CoDyRA", "FixedRankLoRA", "Prepared"]
