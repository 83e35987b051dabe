"""Fixed-rank LoRA: the same branches with their gates frozen at one, merged after each task."""

from codyra_llm.methods.base import Method


class LoRA(Method):
    """`Method` without changes, under the name `lora`."""

    name = "lora"
    summary = "fixed rank, merged after each task"
