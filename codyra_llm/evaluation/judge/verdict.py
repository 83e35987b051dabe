"""Pairwise judging with position swap: the judge's prompts, win, tie or loss, and confidence intervals.

A pair is a win (or a loss) only if the verdicts in both orders agree on it; any other two verdicts are a tie.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from codyra_llm.evaluation.judge.prompts import SLOTS

Z = 1.959964  # normal quantile of a 95 % interval


class Reply(NamedTuple):
    """A judge's reply about two answers.

    Attributes:
        verdict: A, B, or C for a tie; None: the reply contains none, or there is no reply.
        text: the unchanged reply.
        problem: the reason why there is no reply.
    """

    verdict: str | None
    text: str
    problem: str | None = None


Judge = Callable[[Sequence[str]], Sequence[Reply]]  # answers filled templates, in their order


@dataclass(frozen=True)
class Pair:
    """A judge's verdicts on two models' answers to a prompt, with the first model's answer first and with it last."""

    identical: bool
    verdicts: tuple[str | None, str | None] = (None, None)

    @property
    def outcome(self) -> str | None:
        """The result for the first model: win, tie or lose; None: not judged."""
        if self.identical:
            return "tie"
        if None in self.verdicts:
            return None
        return {("A", "B"): "win", ("B", "A"): "lose"}.get(self.verdicts, "tie")  # type: ignore[arg-type]

    @property
    def order_decides(self) -> bool:
        """True if both orders have a verdict and these disagree on the two answers."""
        return None not in self.verdicts and self.verdicts not in (("A", "B"), ("B", "A"), ("C", "C"))


def fill(template: str, prompt: str, answer_a: str, answer_b: str) -> str:
    """Returns the template with its slots filled; slots inside the inserted texts are left unchanged."""
    texts = {"prompt": prompt, "answer_a": answer_a, "answer_b": answer_b}
    return SLOTS.sub(lambda slot: texts[slot[1]], template)


def read_verdict(reply: str) -> str | None:
    """Returns the letter of a reply's last [[A]], [[B]] or [[C]], or a reply of one letter alone; None otherwise."""
    marked = re.findall(r"\[\[([ABC])\]\]", reply)
    alone = re.fullmatch(r"\W*([ABC])\W*", reply)
    return marked[-1] if marked else alone[1] if alone else None


@dataclass(frozen=True)
class Tally:
    """Wins, ties and losses of the first model, in pairs and in percent of judged pairs; None if none was judged.

    Attributes:
        win, tie, lose: number of pairs.
        identical: number of ties with identical answers, which no judge was asked about.
        unjudged: number of pairs that are no win, tie or loss.
        win_percent, lose_percent: in percent of the judged pairs.
        win_interval, lose_interval: Wilson's 95 % intervals, in percent.
        net: percent won minus percent lost.
        net_stderr: standard error of `net`.
        order_decides_percent: percent of the pairs judged in both orders on which the order changed the verdict: the
            judge's position bias.
    """

    win: int
    tie: int
    lose: int
    identical: int
    unjudged: int
    win_percent: float | None
    win_interval: tuple[float, float] | None
    lose_percent: float | None
    lose_interval: tuple[float, float] | None
    net: float | None
    net_stderr: float | None
    order_decides_percent: float | None


def tally(pairs: Iterable[Pair]) -> Tally:
    """Counts the outcomes of pairs."""
    pairs = list(pairs)
    outcomes = [pair.outcome for pair in pairs]
    counts = {name: outcomes.count(name) for name in ("win", "tie", "lose")}
    judged, asked = sum(counts.values()), [pair for pair in pairs if pair.outcome and not pair.identical]
    net = (counts["win"] - counts["lose"]) / judged if judged else 0.0
    variance = (counts["win"] + counts["lose"]) / judged - net**2 if judged else 0.0
    return Tally(
        **counts,
        identical=sum(pair.identical for pair in pairs),
        unjudged=outcomes.count(None),
        win_percent=100 * counts["win"] / judged if judged else None,
        win_interval=wilson(counts["win"], judged),
        lose_percent=100 * counts["lose"] / judged if judged else None,
        lose_interval=wilson(counts["lose"], judged),
        net=100 * net if judged else None,
        net_stderr=100 * (max(variance, 0.0) / (judged - 1)) ** 0.5 if judged > 1 else None,
        order_decides_percent=100 * sum(pair.order_decides for pair in asked) / len(asked) if asked else None,
    )


def wilson(hits: int, total: int) -> tuple[float, float] | None:
    """Returns Wilson's 95 % interval of hits / total, in percent; None if the total is 0."""
    if not total:
        return None
    share, z2 = hits / total, Z**2 / total
    middle, half = share + z2 / 2, Z * (share * (1 - share) / total + z2 / (4 * total)) ** 0.5
    return 100 * max(0.0, (middle - half) / (1 + z2)), 100 * min(1.0, (middle + half) / (1 + z2))
