"""Compares answering the test rows of all TRACE tasks: ours, and transformers' generate with the same batch size.

    python -m benchmarks.generate --data_dir LLM-CL-Benchmark_500 --rows 16
    python -m benchmarks.generate --data_dir LLM-CL-Benchmark_500 --rows 16 --model runs/x/model    # it knows the tasks

Decoding is greedy with left padding. A batch of generate runs until its last row has ended. The contestants:

- generate: rows of all tasks mixed, in a fixed random order; one limit of new tokens for all tasks, and a row ends only
  at the EOS token, as in TRACE's own evaluation (whose limit is 512).
- generate, by task: as generate, but each batch has rows of one task, in the file's order.
- generate, limits: also uses the task's own limit where it is below the common one.
- generate, limits and stops: also uses the task's stop strings.
- ours, without guesses: the same limits and stop strings; also computes the loss of every true answer.
- ours: also guesses tokens ahead (prompt lookup).

Batches of one task are full only if --rows is a multiple of --batch_size. An answer that never ends costs generate the
whole limit, so limits matter more for a model that has not learned the tasks.
Operations, operator traffic and extra memory (growth of the peak) come from one additional pass each.
"""

import argparse
import functools
import logging
import random
from collections.abc import Callable
from unittest.mock import patch

from transformers import AutoTokenizer

from benchmarks.counting import costs
from benchmarks.mix import examples
from benchmarks.rounds import report
from codyra_llm.generation.generate import Question, answer_questions
from codyra_llm.generation.prompt_lookup import Draft
from codyra_llm.models.load import load_model
from codyra_llm.models.source import resolve_model
from codyra_llm.selfcheck.answers import plain
from codyra_llm.selfcheck.timing import compared, interleave


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="tasks/trace/sample")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="as model.name_or_path, in fp32")
    parser.add_argument("--rows", type=int, default=4, help="of each task")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=512, help="the limit for all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--short", action="store_true", help="the first and the last contestant alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    model, size, cap = load_model(options.model), options.batch_size, options.max_new_tokens
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(options.model))
    mix = examples(tokenizer, options.data_dir, options.rows, "test")
    mixed = [row for _, rows in mix for row in rows]
    random.Random(0).shuffle(mixed)
    questions = [
        Question(row, min(cap, task.spec.max_new_tokens), task.spec.stop) for task, rows in mix for row in rows
    ]

    def by_task(limits: bool, stops: bool) -> None:
        for task, rows in mix:
            limit, stop = min(cap, task.spec.max_new_tokens) if limits else cap, task.spec.stop if stops else ()
            plain(model, tokenizer, rows, size, limit, stop)

    def ours() -> None:
        answer_questions(model, tokenizer, questions, size)

    def without_guesses() -> None:
        with patch.object(Draft, "guess", return_value=[]):
            ours()

    contestants: dict[str, Callable[[], object]] = {
        "generate": functools.partial(plain, model, tokenizer, mixed, size, cap),
        "generate, by task": functools.partial(by_task, limits=False, stops=False),
        "generate, limits": functools.partial(by_task, limits=True, stops=False),
        "generate, limits and stops": functools.partial(by_task, limits=True, stops=True),
        "ours, without guesses": without_guesses,
        "ours": ours,
    }
    if options.short:
        contestants = dict(list(contestants.items())[:: len(contestants) - 1])
    times = compared(interleave(contestants, options.rounds, warmup=1), "generate")
    table = [{"contestant": name, **times[name], **costs(run)} for name, run in contestants.items()]
    title = f"{len(questions)} test rows, batches of {size}, at most {cap} new tokens, {options.rounds} rounds"
    report(f"{options.model}, {title}", table, options.json)


if __name__ == "__main__":
    main()
