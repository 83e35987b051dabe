"""What reports say of a domain, by its name in results.json."""

from dataclasses import dataclass

from codyra_llm.errors import UserError
from codyra_llm.evaluation.scorers import VARIANTS
from codyra_llm.methods import METHODS

UNION, WITHIN_TASK = "union", "within_task"


@dataclass(frozen=True)
class Facts:
    """A domain, to those who write about it.

    Attributes:
        name: as task files give it. unit: what speed counts. per: what a loss in nats is a mean over.
        variants: of scores. leading: metrics of the matrix that are shown before the others.
        task: what models do, as model cards say it (pipeline_tag).
        adapter_task: the same as PEFT says it; None where it has no word for it.
        generates: whether answers are written, which takes longer than to say how likely they are.
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
    """Raises UserError where a method cannot learn from a kind of data (`Needs.domains`)."""
    able = [each for each, of_method in METHODS.items() if name in of_method.needs.domains]
    if method not in able:
        raise UserError(f"method {method}: cannot learn from {name}; use {', '.join(able)}")
