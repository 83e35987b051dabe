"""CoDyRA on branches that read only what earlier tasks' inputs do not use (arXiv 2412.01004 and 2404.00228)."""

from codyra_llm.methods.codyra import CoDyRA
from codyra_llm.methods.inflora import InfLoRA


class ProtectedCoDyRA(CoDyRA, InfLoRA):
    """The gates of CoDyRA, and the A of InfLoRA: designed from the task's inputs, off those of earlier tasks, frozen.

    B and gates train. Forgetting comes from what a branch does to inputs of earlier tasks: the design keeps those out
    of its reach, and the threshold takes away the components, which can be many to begin with, that the task's loss
    does not need. The design is not in the published method, whose A is drawn at random. Kept: what InfLoRA keeps.
    """

    name = "codyra_protected"
    summary = "codyra whose branches read only what earlier tasks' inputs do not use"
