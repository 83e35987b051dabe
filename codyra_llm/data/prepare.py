"""Checks a downloaded copy of TRACE, and takes a clean validation split out of its training rows.

TRACE has repeated training rows, conflicting labels, test rows in train, and eval files that are the test file. None
of that prevents a run, but all of it changes what a score means, so it is counted and reported.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codyra_llm.command import Parser
from codyra_llm.config import DEFAULT_TASK_FILE
from codyra_llm.data.rows import Row
from codyra_llm.data.stream import read_task_file
from codyra_llm.data.tables import find_files, read_table, to_rows
from codyra_llm.errors import UserError
from codyra_llm.text import align

SPLITS = ("train", "eval", "test")
WHERE = (
    "the TRACE benchmark is BeyonderXX/TRACE on GitHub (github.com/BeyonderXX/TRACE); its README links the archive "
    "TRACE-Benchmark.zip, which holds LLM-CL-Benchmark_500, _1000, _5000 and Reasoning variants. Unpack it and point "
    "--data_dir to LLM-CL-Benchmark_500, the folder that contains C-STANCE/ FOMC/ ..."
)


def read_task(data_dir: Path, task: str) -> tuple[dict[str, list[Row]], list[str]]:
    """Returns the splits that can be read, and a sentence for each one that cannot."""
    folder = data_dir / task
    if not folder.is_dir():
        found = next((p for pattern in (f"*/{task}", f"*/*/{task}") for p in sorted(data_dir.glob(pattern))), None)
        advice = f"there is {found}: point --data_dir to {found.parent}" if found else "unpack it there"
        return {}, [f"{folder}: no such folder; {advice}, or leave the task out with --tasks"]
    splits: dict[str, list[Row]] = {}
    problems = []
    for split in SPLITS:
        try:
            (path,) = find_files(folder, split)
        except UserError as error:
            problems.append(str(error))
            continue
        if not path.exists() and split == "eval":
            continue  # no command requires it
        if not path.exists():
            problems.append(
                f"{path}: no such file; unpack the archive again (copies on GitHub lack the largest files), "
                "or leave the task out with --tasks"
            )
            continue
        try:
            splits[split] = to_rows(read_table(path), str(path), None)
        except UserError as error:
            problems.append(str(error))
    return splits, problems


def check(splits: dict[str, list[Row]], scorer: str = "") -> dict[str, Any]:
    """Returns counts about one task; a number that needs a missing split is None.

    `test_in_train` counts test rows whose prompt is in train, `eval_in_test` eval rows whose prompt is in test.
    """
    train, evaluation, test = (splits.get(split) for split in SPLITS)
    both = train is not None and test is not None
    answers: dict[str, set[str]] = {}
    for row in train or []:
        answers.setdefault(row["prompt"], set()).add(row["answer"])
    shared = [row for row in test or [] if row["prompt"] in answers]
    same = [row for row in shared if row["answer"] in answers[row["prompt"]]]
    # `choice_explained` scores the letter alone, not the explanation after it
    scored = [row["answer"][:1] if scorer == "choice_explained" else row["answer"] for row in test or []]
    top, count = Counter(scored).most_common(1)[0] if scored else (None, 0)
    test_prompts = {row["prompt"] for row in test or []}
    return {
        "rows": {split: len(splits[split]) if split in splits else None for split in SPLITS},
        "train_unique": len(answers) if train else None,
        "train_duplicates": len(train) - len(answers) if train else None,
        "train_conflicts": sum(len(given) > 1 for given in answers.values()) if train else None,
        "test_unique": len(test_prompts) if test else None,
        "test_in_train": len(shared) if both else None,
        "test_in_train_same_answer": len(same) if both else None,
        "eval_is_test": _as_counts(evaluation) == _as_counts(test) if evaluation and test else None,
        "eval_in_test": sum(row["prompt"] in test_prompts for row in evaluation) if evaluation and test else None,
        "majority_answer": top,
        "majority_share": count / len(test) if test else None,
        "prompt_chars": _lengths(splits, "prompt"),
        "answer_chars": _lengths(splits, "answer"),
    }


def findings(numbers: dict[str, Any]) -> list[str]:
    """Returns sentences on the problems that `check` found, and on what to do about them."""
    n, rows, said = numbers, numbers["rows"], []
    if n["train_duplicates"]:
        said.append(
            f"train repeats prompts: {rows['train']} rows, {n['train_unique']} different; an epoch sees some rows more "
            "than once. --validation_size writes a copy without the repeats."
        )
    if n["train_conflicts"]:
        said.append(
            f"{n['train_conflicts']} train prompts have more than one answer; look at them, or let --validation_size "
            "keep the first answer of each."
        )
    if n["test_in_train"]:
        said.append(
            f"{n['test_in_train']} of {rows['test']} test rows have their prompt in train "
            f"({n['test_in_train_same_answer']} with the same answer), so the test score flatters a model that "
            "memorises; --validation_size drops these rows from train."
        )
    if n["eval_is_test"]:
        said.append(
            "eval and test are the same rows: anything chosen on eval is chosen on test. Carve a validation split out "
            "of train with --validation_size N --output_dir OUT."
        )
    elif n["eval_in_test"]:
        said.append(
            f"{n['eval_in_test']} of {rows['eval']} eval rows have their prompt in test: choosing on eval leaks test. "
            "Carve a validation split out of train with --validation_size N --output_dir OUT."
        )
    if rows["test"] and n["test_unique"] < rows["test"]:
        said.append(
            f"test repeats prompts: {rows['test']} rows, {n['test_unique']} different. Leave it as it is, published "
            "scores count the repeats too."
        )
    if n["majority_share"] and n["majority_share"] > 0.5:
        said.append(
            f"always answering {n['majority_answer']!r} scores {n['majority_share']:.0%} on test; read accuracy "
            "against that, not against chance."
        )
    return said


def carve(train: list[Row], test: list[Row], size: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Splits train into (train, validation), the latter of `size` rows, without repeated prompts or prompts of test.

    The first row of each repeated prompt is kept; both parts keep the order of the file.

    Raises:
        UserError: no training rows would be left.
    """
    seen = {row["prompt"] for row in test}
    usable = []
    for row in train:
        if row["prompt"] not in seen:
            seen.add(row["prompt"])
            usable.append(row)
    if size >= len(usable):
        raise UserError(
            f"--validation_size {size} leaves no training rows: {len(usable)} of {len(train)} are left without "
            f"repeated prompts and prompts of test; give at most {len(usable) - 1}"
        )
    chosen = set(random.Random(seed).sample(range(len(usable)), size))
    return (
        [row for index, row in enumerate(usable) if index not in chosen],
        [row for index, row in enumerate(usable) if index in chosen],
    )


def refuse_used(output_dir: Path) -> None:
    """Raises UserError unless `output_dir` does not exist or is an empty folder."""
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"{output_dir}: is a file; give a new or empty folder as --output_dir")
    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise UserError(f"{output_dir}: already has files; give a new or empty folder as --output_dir")


def write_data(output_dir: Path, data: dict[str, dict[str, list[Row]]]) -> None:
    """Writes OUT/<task>/<split>.json for every task, all of it or nothing."""
    refuse_used(output_dir)
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}.") as scratch:
            # one level down, as only the owner can read the temporary folder itself
            whole = Path(scratch) / "data"
            for task, splits in data.items():
                (whole / task).mkdir(parents=True)
                for split, rows in splits.items():
                    with open(whole / task / f"{split}.json", "w", encoding="utf-8") as file:
                        json.dump(rows, file, ensure_ascii=False, indent=1)
                        file.flush()
                        os.fsync(file.fileno())
            os.replace(whole, output_dir)
    except OSError as error:
        raise UserError(f"{output_dir}: cannot be written ({error.strerror})") from None


def _as_counts(rows: list[Row]) -> Counter[tuple[str, str]]:
    return Counter((row["prompt"], row["answer"]) for row in rows)


def _lengths(splits: dict[str, list[Row]], key: str) -> dict[str, int] | None:
    lengths = [len(row[key]) for rows in splits.values() for row in rows]
    return {"median": int(statistics.median(lengths)), "max": max(lengths)} if lengths else None


def table(tasks: dict[str, dict[str, Any]]) -> str:
    """Returns the numbers of all tasks as a table; lengths are in characters, median/longest."""
    head = ["task", "train", "unique", "repeats", "conflicts", "eval", "test", "test in train (same)", "eval in test"]
    lines = [[*head, "majority", "prompt", "answer"]]
    for task, n in tasks.items():
        rows = n["rows"]
        overlap = None if n["test_in_train"] is None else f"{n['test_in_train']} ({n['test_in_train_same_answer']})"
        leak = "all, the same" if n["eval_is_test"] else n["eval_in_test"]
        share = None if n["majority_share"] is None else f"{n['majority_share']:.0%}"
        lengths = [f"{c['median']}/{c['max']}" if c else None for c in (n["prompt_chars"], n["answer_chars"])]
        of_train = [rows["train"], n["train_unique"], n["train_duplicates"], n["train_conflicts"]]
        cells = [task, *of_train, rows["eval"], rows["test"], overlap, leak, share, *lengths]
        lines.append(["-" if cell is None else str(cell) for cell in cells])
    return align(lines)


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        description="Check a downloaded copy of TRACE, or of the pictures that a task file names; with "
        "--validation_size, also write a clean copy of TRACE.",
        epilog=f"Exit status: 0 ready, 1 a task cannot be used as it is, 2 wrong call. Where to get the data: {WHERE}",
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of C-STANCE/ FOMC/ ..., or of pictures")
    parser.add_argument(
        "--task_file",
        type=Path,
        default=DEFAULT_TASK_FILE,
        help="which tasks to look for, of text or of pictures (default: TRACE's)",
    )
    parser.add_argument("--tasks", help="only these tasks of the task file, as in FOMC,Py150")
    parser.add_argument("--validation_size", type=int, help="rows per task to carve out of train as the new eval split")
    parser.add_argument("--output_dir", type=Path, help="new or empty folder for the copy with that eval split")
    parser.add_argument("--seed", type=int, default=0, help="which rows are carved (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def _choose(names: list[str], wanted: str | None, task_file: Path) -> list[str]:
    if wanted is None:
        return names
    chosen = [name.strip() for name in wanted.split(",")]
    for name in chosen:
        if name not in names:
            raise UserError(f"--tasks: no task {name!r} in {task_file}; it has {', '.join(names)}")
    return list(dict.fromkeys(chosen))


def prepare(arguments: Sequence[str]) -> int:
    """Runs the checks, prints the results, and writes the copy if requested; returns the exit status.

    Raises:
        UserError: an argument is invalid.
    """
    args = make_parser().parse_args(arguments)
    _check_call(args)
    specs, _, _ = read_task_file(args.task_file)
    numbers: dict[str, dict[str, Any]] = {}
    carved: dict[str, dict[str, list[Row]]] = {}
    not_ready = []
    for task in _choose(list(specs), args.tasks, args.task_file):
        splits, problems = read_task(args.data_dir, task)
        numbers[task] = {**check(splits, specs[task].scorers[0]), "problems": problems}
        numbers[task]["findings"] = findings(numbers[task])
        if problems:
            not_ready.append(task)
        elif args.output_dir is not None:
            try:
                train, evaluation = carve(splits["train"], splits["test"], args.validation_size, args.seed)
            except UserError as error:
                raise UserError(f"{task}: {error}") from None
            carved[task] = {"train": train, "eval": evaluation, "test": splits["test"]}
    written = args.output_dir if args.output_dir is not None and not not_ready else None
    if written:
        write_data(written, carved)
    if args.json:
        _print_json(args.data_dir, numbers, not_ready, written, carved)
    else:
        _print_report(numbers, not_ready)
        if written:
            for task, splits in carved.items():
                print(f"{written / task}: " + ", ".join(f"{s} {len(rows)}" for s, rows in splits.items()))
        elif args.output_dir is not None:
            print(f"nothing written to {args.output_dir}: every task must be ready, or left out with --tasks")
    return 1 if not_ready else 0


def _check_call(args: argparse.Namespace) -> None:
    if (args.validation_size is None) != (args.output_dir is None):
        raise UserError("--validation_size and --output_dir belong together; give both or neither")
    if args.output_dir is not None:
        if args.validation_size < 1:
            raise UserError(f"--validation_size {args.validation_size}: must be 1 or more")
        refuse_used(args.output_dir)
    if not args.data_dir.is_dir():
        raise UserError(f"--data_dir {args.data_dir}: no such folder; {WHERE}")


def _print_json(
    data_dir: Path,
    numbers: dict[str, dict[str, Any]],
    not_ready: list[str],
    written: Path | None,
    carved: dict[str, dict[str, list[Row]]],
) -> None:
    rows = {task: {split: len(rows) for split, rows in splits.items()} for task, splits in carved.items()}
    summary = {
        "schema_version": 1,
        "data_dir": str(data_dir),
        "ready": not not_ready,
        "tasks": numbers,
        "output_dir": str(written) if written else None,
        "written_rows": rows if written else None,
    }
    print(json.dumps(summary, ensure_ascii=False, indent=1))


def _print_report(numbers: dict[str, dict[str, Any]], not_ready: list[str]) -> None:
    print(table(numbers))
    print("repeats: train rows whose prompt came before. conflicts: train prompts with several answers.")
    print("majority: share of the commonest test answer. prompt, answer: characters, median/longest.\n")
    for task, n in numbers.items():
        for sentence in n["problems"] + n["findings"]:
            print(f"{task}: {sentence}")
    print(f"not ready: {', '.join(not_ready)}" if not_ready else f"ready: {len(numbers)} tasks")
