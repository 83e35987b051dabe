"""Proxies of instruction following and safety that need no judge: counted by rule, and no more than that."""

from collections.abc import Sequence
from typing import Any

from codyra_llm.evaluation.judge.checks import passed
from codyra_llm.evaluation.judge.prompts import CRITERIA, Prompt
from codyra_llm.files import read_text
from codyra_llm.generation.generate import Answered


def refusal_phrases() -> list[str]:
    """The phrases of tasks/judge/refusals.txt, in small letters."""
    lines = read_text(CRITERIA / "refusals.txt").splitlines()
    return [line.strip().lower() for line in lines if line.strip() and not line.startswith("#")]


def is_refusal(answer: str, phrases: Sequence[str]) -> bool:
    """Whether an answer holds one of the phrases (in small letters)."""
    plain = answer.replace("’", "'").lower()
    return any(phrase in plain for phrase in phrases)


def proxies(prompts: Sequence[Prompt], answers: Sequence[Answered]) -> dict[str, Any]:
    """Refusal rate, mean length and format compliance of a model's answers to prompts, in their order.

    Returns:
        `refusal_rate` (percent of answers), `mean_words`, `mean_tokens` (of the model's own tokenizer), and `checks`:
        how many there are, the percent of them that is passed and the percent of prompts that pass all theirs (None
        where no prompt has any).
    """
    phrases = refusal_phrases()
    found = [passed(prompt.checks, answer.text) for prompt, answer in zip(prompts, answers, strict=True)]
    checked = [each for each in found if each]
    every = [held for each in checked for held in each.values()]
    return {
        "refusal_rate": _percent([is_refusal(answer.text, phrases) for answer in answers]),
        "mean_words": sum(len(answer.text.split()) for answer in answers) / len(answers),
        "mean_tokens": sum(answer.tokens for answer in answers) / len(answers),
        "checks": {
            "count": len(every),
            "passed": _percent(every),
            "prompts_passed": _percent([all(each.values()) for each in checked]),
        },
    }


def _percent(held: Sequence[bool]) -> float | None:
    return 100 * sum(held) / len(held) if held else None
