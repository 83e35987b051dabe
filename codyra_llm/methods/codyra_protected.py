"""CoDyRA on branches that read only what earlier tasks' inputs do not use (arXiv 2412.01004 and 2404.00228)."""

from codyra_llm.methods.codyra import CoDyRA
from codyra_llm.methods.inflora import InfLoRA


class ProtectedCoDyRA(CoDyRA, InfLoRA):
    """CoDyRA's gates over InfLoRA's frozen A, which is built from the task's inputs, away from earlier tasks' inputs.

    B and gates train. A branch causes forgetting by what it does to inputs of earlier tasks. The design of A removes
    these from what the branch reads, and the threshold removes the components that the task's loss does not need; the
    initial rank can therefore be large. The published method draws A at random instead. Kept: what InfLoRA keeps.
    """

    name = "codyra_protected"
    summary = "codyra whose branches read only what earlier tasks' inputs do not use"
