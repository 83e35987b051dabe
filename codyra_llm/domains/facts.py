"""How reports describe a domain, by the domain's name in results.json."""

from dataclasses import dataclass

from codyra_llm.errors import UserError
from codyra_llm.evaluation.scorers import VARIANTS
from codyra_llm.methods import METHODS

UNION, WITHIN_TASK = "union", "within_task"


@dataclass(frozen=True)
class Facts:
    """Names and units that reports use for a domain.

    Attributes:
        name: the name in task files.
        unit: what training speed counts.
        per: what a loss in nats is averaged over.
        variants: the scoring variants.
        leading: metrics of the matrix that are shown before the others.
        task: the task in model cards (pipeline_tag).
        adapter_task: the task type in PEFT; None where PEFT has no name for it.
        generates: True if answers are generated, which takes longer than computing their likelihood.
    """

    name: str
    unit: str
    per: str
    variants: tuple[str, ...]
    leading: tuple[str, ...]
    task: str
    adapter_task: str | None
    generates: bool = True


FACTS = {
    facts.name: facts
    for facts in (
        Facts("text", "token", "token", tuple(VARIANTS), (), "text-generation", "CAUSAL_LM"),
        Facts(
            "images",
            "image",
            "image",
            (UNION, WITHIN_TASK),
            ("transfer", "average", "last"),
            "zero-shot-image-classification",
            None,
            generates=False,
        ),
    )
}


def check_learns(name: str, method: str) -> None:
    """Raises UserError if a method cannot learn from a kind of data (`Needs.domains`)."""
    able = [each for each, of_method in METHODS.items() if name in of_method.needs.domains]
    if method not in able:
        raise UserError(f"method {method}: cannot learn from {name}; use {', '.join(able)}")
