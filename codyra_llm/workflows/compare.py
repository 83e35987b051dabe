"""A comparison: runs, or resumes, all runs of a grid one after another, then writes a table and a picture."""

import dataclasses
import datetime
import json
import operator
import time
from pathlib import Path
from typing import Any

from codyra_llm.config import RunConfig, resolve_path
from codyra_llm.config.grid import Grid, GridRun, Settings, config_of_run, grid_runs, points
from codyra_llm.data.stream import TaskStream, check_same_tasks
from codyra_llm.data.validation import with_validation
from codyra_llm.distributed.ranks import Ranks, on_rank_0, start
from codyra_llm.distributed.stop import StopRequest
from codyra_llm.domains.find import find_domain
from codyra_llm.errors import Stopped, UserError
from codyra_llm.files import expand, write_text
from codyra_llm.report.comparison import Comparison, write_comparison
from codyra_llm.report.page.comparison import report_comparison
from codyra_llm.results.comparison import (
    Contestant,
    Losses,
    RunKey,
    difference,
    excess,
    mean_and_deviation,
)
from codyra_llm.results.measures import MEASURES, RowLosses, base_losses, measures, row_losses
from codyra_llm.results.predictors import predictors
from codyra_llm.results.schema import SCHEMA_VERSION, RunResults
from codyra_llm.workflows.train import run as run_stream


@dataclasses.dataclass
class Finished:
    """The runs of one contestant; numbers and losses on rank 0 alone.

    Attributes:
        runs: number of finished runs.
        numbers: measures of each run.
        losses: losses of each run's rows.
        failed: errors that other runs ended with.
    """

    runs: int = 0
    numbers: dict[RunKey, dict[str, float | None]] = dataclasses.field(default_factory=dict)
    losses: dict[RunKey, list[RowLosses]] = dataclasses.field(default_factory=dict)
    failed: list[str] = dataclasses.field(default_factory=list)


def compare(base: RunConfig, grid: Grid) -> list[Contestant]:
    """Runs, or resumes, every run of a grid, and writes comparison.{json,csv,md,tex}, the picture and the page.

    Every run has its own run folder in base.output_dir; a finished one is read, not run again. A run that ends with an
    error is listed with it, and the comparison continues with the others.

    Raises:
        UserError: the grid is invalid, its orders have different tasks, or no run could be finished.
        Stopped: it was asked to stop, by a signal or a file `stop` in its folder; started again, it resumes.
    """
    check_same_tasks(resolve_path(base.task_file), grid.orders)
    ranks = start(base.rendezvous_seconds, base.collective_seconds)
    output = expand(base.output_dir)
    with StopRequest(ranks, output / "stop" if ranks.is_main else None) as stop:
        return _compare(base, grid, ranks, output, stop)


def _compare(base: RunConfig, grid: Grid, ranks: Ranks, output: Path, stop: StopRequest) -> list[Contestant]:
    on_rank_0(ranks, lambda: (output / "stop").unlink(missing_ok=True))
    tuned = _sweep(base, grid, ranks, output, stop)
    runs = list(grid_runs(grid))
    found = {point.name: Finished() for point in points(grid)}
    untouched: dict[RunKey, list[RowLosses]] = {}
    begun = time.monotonic()
    for number, each in enumerate(runs):
        _check_stop(stop, f"after run {number} of {len(runs)}", ranks)
        left = (time.monotonic() - begun) / max(number, 1) * (len(runs) - number)
        about = f", about {datetime.timedelta(seconds=round(left))} left" if number else ""
        _say(ranks, f"\nrun {number + 1} of {len(runs)}: {each.folder}{about}")
        config = config_of_run(base, each, tuned.get(each.point.variant))
        _run(config, each, found[each.point.name], untouched, ranks)
    contestants = _contestants(grid, found, untouched) if ranks.is_main else []
    if not any(finished.runs for finished in found.values()):
        raise UserError(f"no run could be finished: {next(iter(found.values())).failed[0]}")
    every_run = [numbers for finished in found.values() for numbers in finished.numbers.values()]

    def write() -> None:
        found = Comparison(SCHEMA_VERSION, grid, contestants, tuned, predictors(every_run))
        write_comparison(found, output)
        print(f"page: {report_comparison(output)}")

    on_rank_0(ranks, write)
    return contestants


def _check_stop(stop: StopRequest, where: str, ranks: Ranks) -> None:
    if stop.agreed():
        _say(ranks, f"\nstopped {where}, as asked; the same command resumes from there")
        raise Stopped(where)


def _run(
    config: RunConfig, each: GridRun, into: Finished, untouched: dict[RunKey, list[RowLosses]], ranks: Ranks
) -> None:
    """Executes one run and reads its results for the comparison; rank 0 alone has the run's folder."""
    key = (each.order, each.seed)
    try:
        results = run_stream(config, shares_base=True)
    except UserError as error:
        into.failed.append(f"{each.folder}: {error}")
        _say(ranks, f"{each.folder} failed: {error}")
        return
    into.runs += 1

    def read() -> None:
        folder = expand(config.output_dir)
        into.numbers[key] = measures(results, folder)
        into.losses[key] = row_losses(results, folder)
        untouched.setdefault(key, base_losses(results, folder))

    on_rank_0(ranks, read)


def _sweep(base: RunConfig, grid: Grid, ranks: Ranks, output: Path, stop: StopRequest) -> dict[str, Settings]:
    """Returns the best setting of each variant, by the NLL after the last task on rows taken from train.

    The test split is not used: rows of train that are not trained on replace it. A variant with its own value of the
    setting tries values in the same proportion to it as the sweep's values have to the configuration's value.
    """
    if not grid.sweep:
        return {}
    scores: Any = "nll" if find_domain(base).facts.generates else base.evaluate.scores
    ((name, values),) = grid.sweep.items()
    order, seed = grid.orders[0], grid.seeds[0]
    chosen: dict[str, Settings] = {}
    tried: dict[str, list[dict[str, Any]]] = {}
    for point in [point for point in points(grid) if point.strength is None]:
        usual = operator.attrgetter(name)(base)
        for value in [value * point.settings.get(name, usual) / usual for value in values] if usual else values:
            folder = f"sweep/{point.name}/{name.rpartition('.')[2]}={value:g}"
            _check_stop(stop, f"before {folder}", ranks)
            _say(ranks, f"\nsweep: {folder}")
            config = config_of_run(base, GridRun(point, order, seed), {name: value})
            config = dataclasses.replace(
                config,
                output_dir=str(Path(base.output_dir) / folder),
                evaluate=dataclasses.replace(config.evaluate, tasks="last", scores=scores),
                general=dataclasses.replace(config.general, suites=()),
            )
            results = run_stream(config, _carved(config, grid.validation))
            tried.setdefault(point.name, []).append({name: value, "nll": _last_nll(results)})
        best = min(tried[point.name], key=lambda each: each["nll"])
        chosen[point.name] = {name: best[name]}
        _say(ranks, f"sweep: {point.name} gets {chosen[point.name]}")
    content = {"validation": grid.validation, "tried": tried, "chosen": chosen}
    on_rank_0(ranks, lambda: write_text(output / "sweep.json", json.dumps(content, indent=1) + "\n"))
    return chosen


def _carved(config: RunConfig, share: float) -> TaskStream:
    """Returns the stream of a configuration with rows of train, which are not trained on, as test rows."""
    train = dataclasses.replace(config.train, validation=None, early_stopping=None, keep_best=False)
    stream = find_domain(config).stream(dataclasses.replace(config, train=train), None, to_train=True)
    tasks = tuple(with_validation(task, share, seed=0).tested_on_validation() for task in stream)
    return dataclasses.replace(stream, tasks=tasks)


def _last_nll(results: RunResults) -> float:
    known = [nll if nll is not None else float("inf") for nll in results.answer_nll[-1]]
    return sum(known) / len(known)


def _contestants(grid: Grid, found: dict[str, Finished], untouched: Losses) -> list[Contestant]:
    """Returns the table's line for each contestant, with its differences from the line's method at its own strength."""
    every = points(grid)
    line = [found[point.name].losses for point in every if point.variant == grid.line]
    line = [losses for losses in line if losses]
    against = found[grid.line].losses if grid.line in found else {}
    contestants = []
    for point in every:
        finished = found[point.name]
        of_measures = {
            name: mean_and_deviation([numbers[name] for numbers in finished.numbers.values()]) for name in MEASURES
        }
        is_line = point.variant == grid.line
        contestants.append(
            Contestant(
                point.name,
                point.variant,
                point.strength,
                point.settings,
                runs=len(finished.numbers),
                mean={name: mean for name, (mean, _) in of_measures.items()},
                deviation={name: deviation for name, (_, deviation) in of_measures.items()},
                difference={} if is_line and point.strength is None else difference(finished.losses, against),
                excess=None if is_line else excess(finished.losses, [untouched, *line] if line else []),
                failed=finished.failed,
            )
        )
    return contestants


def _say(ranks: Ranks, text: str) -> None:
    if ranks.is_main:
        print(text, flush=True)
