"""CoDyRA on branches that read the directions in which a task's inputs differ from all inputs before."""

from codyra_llm.methods.codyra import CoDyRA
from codyra_llm.methods.contrast_lora import ContrastLoRA


class ContrastCoDyRA(CoDyRA, ContrastLoRA):
    """CoDyRA's gates over the frozen A of `contrast_lora`.

    B and gates train. A branch causes forgetting by what it does to earlier inputs. The design of A keeps it away from
    these, and the threshold removes the components that the task's loss does not need; the initial rank can therefore
    be large. The published method draws A at random instead. Kept: what `contrast_lora` keeps.
    """

    name = "codyra_contrast"
    summary = "codyra whose branches read directions in which a task's inputs differ from earlier ones"
