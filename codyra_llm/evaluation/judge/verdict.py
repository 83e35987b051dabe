"""Pairwise judging with position swap: prompts, win, tie or loss, and intervals.

A pair is a win (lose) only if both orders say so; any other two verdicts, opposite ones among them, are a tie.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from codyra_llm.evaluation.judge.prompts import SLOTS

Z = 1.959964  # of a 95 % interval


class Reply(NamedTuple):
    """What a judge says of two answers.

    Attributes:
        verdict: A, B, or C for a tie; None: there is none in its reply, or there is no reply.
        text: its reply as it came.
        problem: why there is no reply.
    """

    verdict: str | None
    text: str
    problem: str | None = None


Judge = Callable[[Sequence[str]], Sequence[Reply]]  # answers filled templates, in their order


@dataclass(frozen=True)
class Pair:
    """Two models' answers to a prompt, and a judge's verdicts on them: the first model's first, and last."""

    identical: bool
    verdicts: tuple[str | None, str | None] = (None, None)

    @property
    def outcome(self) -> str | None:
        """win, tie or lose for the first model; None: unjudged."""
        if self.identical:
            return "tie"
        if None in self.verdicts:
            return None
        return {("A", "B"): "win", ("B", "A"): "lose"}.get(self.verdicts, "tie")  # type: ignore[arg-type]

    @property
    def order_decides(self) -> bool:
        """Whether the two orders gave different verdicts on the same two answers."""
        return None not in self.verdicts and self.verdicts not in (("A", "B"), ("B", "A"), ("C", "C"))


def fill(template: str, prompt: str, answer_a: str, answer_b: str) -> str:
    """What a judge is asked: the template with its slots filled, whatever the texts hold."""
    texts = {"prompt": prompt, "answer_a": answer_a, "answer_b": answer_b}
    return SLOTS.sub(lambda slot: texts[slot[1]], template)


def read_verdict(reply: str) -> str | None:
    """The last [[A]], [[B]] or [[C]] of a reply, or a reply of that letter alone; None where there is neither."""
    marked = re.findall(r"\[\[([ABC])\]\]", reply)
    alone = re.fullmatch(r"\W*([ABC])\W*", reply)
    return marked[-1] if marked else alone[1] if alone else None


@dataclass(frozen=True)
class Tally:
    """Win, tie and lose of the first model, in pairs and in percent of the judged; None where nothing was judged.

    Attributes:
        identical: ties that no judge was asked about. unjudged: pairs, which are none of the others.
        win_interval, lose_interval: Wilson's 95 % intervals, in percent.
        net: percent won minus percent lost, with its standard error.
        order_decides_percent: share of the pairs judged in both orders on which the order changed the verdict, the
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
    """Wilson's 95 % interval of a share, in percent; None of nothing."""
    if not total:
        return None
    share, z2 = hits / total, Z**2 / total
    middle, half = share + z2 / 2, Z * (share * (1 - share) / total + z2 / (4 * total)) ** 0.5
    return 100 * max(0.0, (middle - half) / (1 + z2)), 100 * min(1.0, (middle + half) / (1 + z2))
