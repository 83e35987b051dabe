"""The runs of a comparison: variants of one configuration, each in several orders with several seeds.

A comparison's YAML file is a run's configuration with one more section:

    compare:
      methods: [lora, seqlora, codyra]       # what is compared: variants from below, or methods without changes
      seeds: [0, 1, 2]
      orders: [order1]                       # without this key: the configuration's order
      line: lora                             # the method whose curve is the line to beat
      variants:                              # a name, and the settings in which it differs
        replay-10: {method: replay, replay.fraction: 0.1}
      curves:                                # values of the setting for how strongly a variant learns or keeps
        lora: {merge.scale: [0.3, 0.6]}
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codyra_llm.config.base import method_names
from codyra_llm.config.load import find_config, load_config, read_config, to_yaml
from codyra_llm.errors import UserError
from codyra_llm.files import expand, validated, write_text
from codyra_llm.text import shown

if TYPE_CHECKING:
    from codyra_llm.config.schema import RunConfig

Settings = dict[str, Any]  # by dotted name
NAME = re.compile(r"[A-Za-z0-9][\w.+=-]{0,63}")


@dataclass(frozen=True)
class Grid:
    """The section `compare`, described above.

    Attributes:
        methods: the variants or methods to compare.
        seeds: the seeds of each.
        orders: the orders of tasks of each, by name or as tasks with commas between; none: that of the configuration.
        line: the method whose curve is the line to beat.
        variants: settings of each variant, by its name.
        curves: variant -> setting -> the values of a curve.
        sweep: one setting -> values, of which each variant gets the best before it is compared.
        validation: share of the training rows on which a sweep chooses.
    """

    methods: tuple[str, ...] = ("lora", "codyra")
    seeds: tuple[int, ...] = (0, 1, 2)
    orders: tuple[str, ...] = ()
    line: str = "lora"
    variants: dict[str, Settings] = field(default_factory=dict)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    sweep: dict[str, list[float]] = field(default_factory=dict)
    validation: float = 0.2


@dataclass(frozen=True)
class Point:
    """One contestant: a variant, or a variant at another strength.

    Attributes:
        name: name of the contestant.
        variant: the variant whose curve it is a point of.
        settings: the settings in which it differs from the base.
        strength: the value of the curve's setting; None for the variant itself.
    """

    name: str
    variant: str
    settings: Settings
    strength: float | None = None


@dataclass(frozen=True)
class GridRun:
    """One run of the grid."""

    point: Point
    order: str
    seed: int

    @property
    def folder(self) -> str:
        """Its run folder, relative to the folder of the comparison."""
        return f"{self.point.name}/{self.order}-seed{self.seed}"


def read_grid(path: str, overrides: Settings, chosen: Mapping[str, Any]) -> "tuple[RunConfig, Grid]":
    """Reads the base configuration and the grid of a comparison.

    Args:
        path: YAML file, or the name of one in configs/.
        overrides: settings that replace those of the base.
        chosen: keys that replace those of the section `compare`.

    Raises:
        UserError: the file, a variant or a curve is invalid.
    """
    file = find_config(path)
    content = read_config(file)
    section = content.pop("compare", None) or {}
    known = [each.name for each in dataclasses.fields(Grid)]
    if not isinstance(section, dict):
        raise UserError(
            f"{file}: compare is a section with keys of its own ({', '.join(known)}), found {shown(section)}"
        )
    if unknown := [key for key in section if key not in known]:
        raise UserError(f"{file}: compare: unknown key {shown(unknown[0])}; there are {', '.join(known)}")
    given = {name: value for name, value in chosen.items() if value}
    grid = validated(Grid, {**section, **given}, f"{file}: compare", "it is not a comparison")
    if len(grid.sweep) > 1:
        raise UserError(f"{file}: compare: sweep: names {len(grid.sweep)} settings; give one")
    contestants = points(grid)
    base = load_config(file, overrides, content)
    if not grid.orders:
        grid = dataclasses.replace(grid, orders=(base.order if isinstance(base.order, str) else ",".join(base.order),))
    for point in contestants:
        try:
            config_of_run(base, GridRun(point, grid.orders[0], grid.seeds[0]))
        except UserError as error:
            raise UserError(f"{file}: compare: {point.name}: {error}") from None
    return base, grid


def points(grid: Grid) -> list[Point]:
    """Returns all contestants, each variant followed by the points of its curve.

    Raises:
        UserError: a name (or the line's) is neither a variant nor a method, or is not valid as a folder name.
    """
    if not (grid.methods and grid.seeds):
        raise UserError("compare: methods and seeds each need at least one")
    if grid.line not in (*grid.methods, *grid.variants, *method_names()):
        raise UserError(f"compare: line {shown(grid.line)} is neither a variant nor a method; name one of methods")
    found = []
    for name in grid.methods:
        if not NAME.fullmatch(name):
            raise UserError(f"compare: {name!r} is no name for a variant: letters, digits and . _ - + = only")
        settings = grid.variants.get(name)
        if settings is None and name not in method_names():
            known = ", ".join([*grid.variants, *method_names()])
            raise UserError(f"compare: {name} is neither a variant of the file nor a method; there are {known}")
        settings = {"method": name} if settings is None else settings
        found.append(Point(name, name, settings))
        for knob, values in grid.curves.get(name, {}).items():
            short = knob.rpartition(".")[2]
            found += [Point(f"{name}+{short}={v:g}", name, {**settings, knob: v}, v) for v in values]
    return found


def grid_runs(grid: Grid) -> Iterator[GridRun]:
    """Yields every run: all contestants and orders for one seed before the next seed."""
    for seed in grid.seeds:
        for order in grid.orders:
            for point in points(grid):
                yield GridRun(point, order, seed)


def config_of_run(base: "RunConfig", run: GridRun, tuned: Settings | None = None) -> "RunConfig":
    """Returns the configuration of a run, whose folder is below the folder of the base.

    Args:
        base: the base configuration.
        run: the run.
        tuned: settings that a sweep has chosen for the variant, which replace its own; a point of a curve keeps the
            setting of its curve.

    Raises:
        UserError: a setting is unknown or invalid.
    """
    own = {"seed": run.seed, "order": run.order, "output_dir": str(Path(base.output_dir) / run.folder)}
    content = dataclasses.asdict(base)
    for name in set(method_names()) - {run.point.settings.get("method", base.method)}:
        content.pop(name, None)
    is_of_curve = run.point.strength is not None
    chosen = {name: value for name, value in (tuned or {}).items() if not is_of_curve or name not in run.point.settings}
    return load_config(None, {**run.point.settings, **chosen, **own}, content)


def write_runs(base: "RunConfig", grid: Grid) -> tuple[Path, int]:
    """Writes the configuration of each run, 1.yaml and so on, to the base's folder `runs`; returns (folder, count).

    Raises:
        OSError: a file cannot be written.
    """
    folder = expand(base.output_dir) / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    runs = list(grid_runs(grid))
    for number, each in enumerate(runs, 1):
        write_text(folder / f"{number}.yaml", to_yaml(config_of_run(base, each)))
    return folder, len(runs)
