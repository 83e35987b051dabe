"""Compares the time of measuring general ability: ours, and lm-evaluation-harness's own class for transformers models.

    python -m benchmarks.general --data_dir general --items 8

Both score the built-in 135M model on the six suites of TRACE, with the same items, harness and batch size. Each row of
the table is one suite, the last row all of them: the time of ours divided by that of the harness's class; both run in
turn in every round. Both generate at most --max_new_tokens tokens for an answer.
"""

import argparse
import functools
import logging

from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from benchmarks.rounds import report
from codyra_llm.config import GeneralConfig
from codyra_llm.evaluation.general.lm import BatchedLM
from codyra_llm.evaluation.general.score import score_suite
from codyra_llm.evaluation.general.suites import Suite, load_suites
from codyra_llm.generation.generate import answer_questions
from codyra_llm.models.load import load_model
from codyra_llm.models.source import resolve_model
from codyra_llm.selfcheck.timing import interleave, ratios


def capped(suite: Suite, max_new_tokens: int) -> Suite:
    """Limits the generated answers of a suite to `max_new_tokens` tokens, in place; returns the suite."""
    for task in suite.tasks.values():
        limits = task.config.generation_kwargs or {}
        if "max_gen_toks" in limits:
            limits["max_gen_toks"] = min(limits["max_gen_toks"], max_new_tokens)
    return suite


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="folder with the suites' data; without it, from the hub")
    parser.add_argument("--suites", default="general", help="comma-separated")
    parser.add_argument("--items", type=int, default=8, help="of each suite")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    model = load_model("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct"))
    ask = functools.partial(answer_questions, model, tokenizer, batch_size=options.batch_size)
    length = model.config.max_position_embeddings
    ours = BatchedLM(tokenizer, ask, length)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.batch_size, max_length=length)
    config = GeneralConfig(tuple(options.suites.split(",")), options.data_dir, options.items)
    suites = [capped(suite, options.max_new_tokens) for suite in load_suites(config)]
    scores: dict[str, float] = {}

    def contestant(suite: Suite, name: str, lm: TemplateLM) -> None:
        scores[f"{suite.name} {name}"] = score_suite(suite, lm)[0].score

    contestants = {
        f"{suite.name} {name}": functools.partial(contestant, suite, name, lm)
        for suite in suites
        for name, lm in (("lm-eval", theirs), ("ours", ours))
    }
    seconds = interleave(contestants, options.rounds, warmup=0)
    for name in ("lm-eval", "ours"):
        of_suites = [seconds[f"{suite.name} {name}"] for suite in suites]
        seconds[f"all {name}"] = [sum(of_round) for of_round in zip(*of_suites, strict=True)]
    table = []
    for suite in [*(suite.name for suite in suites), "all"]:
        ratio = ratios({name: seconds[f"{suite} {name}"] for name in ("ours", "lm-eval")}, "lm-eval")["ours"]
        table.append(
            {
                "suite": suite,
                "score lm-eval": scores.get(f"{suite} lm-eval", ""),
                "score ours": scores.get(f"{suite} ours", ""),
                "time / lm-eval": ratio["median"],
                "10th to 90th percentile": f"{ratio['p10']:.3f} to {ratio['p90']:.3f}",
            }
        )
    report(
        f"{options.items} items a suite, batches of {options.batch_size}, {options.rounds} rounds", table, options.json
    )


if __name__ == "__main__":
    main()
