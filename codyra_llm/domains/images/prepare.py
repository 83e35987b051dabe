"""Checks a copy of picture data sets: where each was found, its counts, and whether its pictures open."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from codyra_llm.data.stream import resolve_order
from codyra_llm.domains.images.coop import LAYOUTS
from codyra_llm.domains.images.pictures import Picture, open_picture
from codyra_llm.domains.images.readers import ImageDomain, read_domain
from codyra_llm.domains.images.tasks import DomainSpec, read_image_tasks
from codyra_llm.errors import UserError
from codyra_llm.files import expand
from codyra_llm.text import align

MOST_PROBLEMS = 5  # that are printed of a domain


def prepare(args: argparse.Namespace) -> int:
    """Checks the domains of a task file and prints what was found; writes nothing. Returns the exit status.

    Args:
        args: the arguments that data.prepare.make_parser defines.

    Raises:
        UserError: an argument is invalid.
    """
    if args.validation_size is not None or args.output_dir is not None:
        raise UserError("--validation_size and --output_dir: nothing is written of pictures; leave them out")
    stream = read_image_tasks(args.task_file)
    wanted = list(stream.specs) if args.tasks is None else [name.strip() for name in args.tasks.split(",")]
    names = resolve_order(wanted, {}, stream.specs, str(args.task_file))
    if not os.path.isdir(expand(args.data_dir)):
        raise UserError(
            f"--data_dir {args.data_dir}: no such folder; it holds a folder of each data set, as docs/clip.md says"
        )
    found = {name: check(stream.specs[name], args.data_dir) for name in names}
    not_ready = [name for name, numbers in found.items() if numbers["problems"]]
    if args.json:
        summary = {"schema_version": 1, "data_dir": str(args.data_dir), "ready": not not_ready, "tasks": found}
        print(json.dumps(summary, ensure_ascii=False, indent=1))
    else:
        _print_report(found, not_ready)
    return 1 if not_ready else 0


def check(spec: DomainSpec, data_dir: Path) -> dict[str, Any]:
    """Returns a domain's folder, counts, what prevents a run (problems), and remarks (findings)."""
    numbers: dict[str, Any] = {"place": None, "train": None, "test": None, "classes": None, "opened": 0, "prompt": None}
    try:
        domain = read_domain(spec, data_dir)
    except UserError as error:
        return {**numbers, "problems": [str(error)], "findings": []}
    problems = []
    for picture in one_of_each_class(domain):
        try:
            open_picture(picture)
            numbers["opened"] += 1
        except UserError as error:
            problems.append(str(error))
    numbers |= {"place": domain.place, "train": len(domain.train), "test": len(domain.test)}
    numbers |= {"classes": len(domain.classes), "prompt": domain.prompts[0]}
    return {**numbers, "problems": problems, "findings": findings(spec, domain)}


def one_of_each_class(domain: ImageDomain) -> list[Picture]:
    """Returns the first training picture of each class, by label."""
    first: dict[int, Picture] = {}
    for picture in domain.train:
        first.setdefault(picture.label, picture)
    return [first[label] for label in sorted(first)]


def findings(spec: DomainSpec, domain: ImageDomain) -> list[str]:
    """Returns sentences on what does not prevent a run but changes what a score means."""
    said = list(domain.notes)
    expected = LAYOUTS[spec.reader].counts if spec.reader in LAYOUTS else None
    counts = len(domain.train), len(domain.test)
    if expected and counts != expected:
        said.append(
            f"{counts[0]} training and {counts[1]} test pictures, where the usual split has {expected[0]} and "
            f"{expected[1]}: scores are not comparable with published ones."
        )
    of_class = [0] * len(domain.classes)
    for picture in domain.train:
        of_class[picture.label] += 1
    if spec.shots and (few := sum(count < spec.shots for count in of_class)):
        said.append(f"{few} classes have fewer than {spec.shots} training pictures; some of theirs are drawn twice.")
    return said


def _print_report(found: dict[str, dict[str, Any]], not_ready: list[str]) -> None:
    columns = ("train", "test", "classes", "opened", "place")
    rows = [[name, *(str(numbers[key] or "-") for key in columns)] for name, numbers in found.items()]
    print(align([["task", "train", "test", "classes", "opened", "found in"], *rows]))
    print("opened: the first training picture of each class.\n")
    for name, numbers in found.items():
        sentences = [*numbers["problems"], *numbers["findings"]]
        for sentence in sentences[:MOST_PROBLEMS]:
            print(f"{name}: {sentence}")
        if len(sentences) > MOST_PROBLEMS:
            print(f"{name}: and {len(sentences) - MOST_PROBLEMS} more; --json has all")
    print(f"not ready: {', '.join(not_ready)}" if not_ready else f"ready: {len(found)} tasks")
