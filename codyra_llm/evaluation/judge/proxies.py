"""Rule-based proxies of instruction following and safety, which need no judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codyra_llm.evaluation.judge.checks import passed
from codyra_llm.evaluation.judge.prompts import CRITERIA, Prompt
from codyra_llm.files import read_text

if TYPE_CHECKING:
    from codyra_llm.generation.generate import Answered


def refusal_phrases() -> list[str]:
    """Returns the phrases of tasks/judge/refusals.txt, in lower case."""
    lines = read_text(CRITERIA / "refusals.txt").splitlines()
    return [line.strip().lower() for line in lines if line.strip() and not line.startswith("#")]


def is_refusal(answer: str, phrases: Sequence[str]) -> bool:
    """True if an answer contains one of the phrases (given in lower case), in any case."""
    plain = answer.replace("’", "'").lower()
    return any(phrase in plain for phrase in phrases)


@dataclass(frozen=True)
class CheckCounts:
    """The number of checks, the percent passed, and the percent of prompts that pass all checks; None without any."""

    count: int
    passed: float | None
    prompts_passed: float | None


@dataclass(frozen=True)
class Proxies:
    """Percent of answers that refuse, mean length in words and in tokens of the model's tokenizer, passed checks."""

    refusal_rate: float | None
    mean_words: float
    mean_tokens: float
    checks: CheckCounts


def proxies(prompts: Sequence[Prompt], answers: "Sequence[Answered]") -> Proxies:
    """Returns the proxies of a model's answers, given in the order of the prompts."""
    phrases = refusal_phrases()
    found = [passed(prompt.checks, answer.text) for prompt, answer in zip(prompts, answers, strict=True)]
    checked = [each for each in found if each]
    every = [held for each in checked for held in each.values()]
    return Proxies(
        refusal_rate=_percent([is_refusal(answer.text, phrases) for answer in answers]),
        mean_words=sum(len(answer.text.split()) for answer in answers) / len(answers),
        mean_tokens=sum(answer.tokens for answer in answers) / len(answers),
        checks=CheckCounts(len(every), _percent(every), _percent([all(each.values()) for each in checked])),
    )


def _percent(held: Sequence[bool]) -> float | None:
    return 100 * sum(held) / len(held) if held else None
