"""What a comparison runs: variants of one configuration, each in several orders with several seeds.

A comparison's YAML file is a run's configuration with one section more:

    compare:
      methods: [lora, seqlora, codyra]       # what is compared: variants from below, or methods as they are
      seeds: [0, 1, 2]
      orders: [order1]
      line: lora                             # the method whose curve is the line to beat
      variants:                              # a name, and the settings by which it differs
        replay-10: {method: replay, replay.fraction: 0.1}
      curves:                                # values of the setting that says how strongly a variant learns or keeps
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
        sweep: setting -> values, of which each variant gets the best before it is compared; one setting.
        validation: share of the training rows that a sweep chooses on.
    """

    methods: tuple[str, ...] = ("lora", "codyra")
    seeds: tuple[int, ...] = (0, 1, 2)
    orders: tuple[str, ...] = ("order1",)
    line: str = "lora"
    variants: dict[str, Settings] = field(default_factory=dict)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    sweep: dict[str, list[float]] = field(default_factory=dict)
    validation: float = 0.2


@dataclass(frozen=True)
class Point:
    """One contestant: a variant, or the variant at another strength.

    Attributes:
        name: of the contestant. variant: whose curve it is a point of. settings: by which it differs from the base.
        strength: the value of the curve's setting; None: the variant as it is.
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
        """Its run folder, relative to the comparison's."""
        return f"{self.point.name}/{self.order}-seed{self.seed}"


def read_grid(path: str, overrides: Settings, chosen: Mapping[str, Any]) -> "tuple[RunConfig, Grid]":
    """The base configuration and the grid of a comparison.

    Args:
        path: YAML file, or the name of one in configs/. overrides: of the base. chosen: of the section `compare`.

    Raises:
        UserError: the file, a variant or a curve is unfit.
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
    for point in contestants:
        try:
            config_of_run(base, GridRun(point, grid.orders[0], grid.seeds[0]))
        except UserError as error:
            raise UserError(f"{file}: compare: {point.name}: {error}") from None
    return base, grid


def points(grid: Grid) -> list[Point]:
    """Every contestant, each variant as it is before the points of its curve.

    Raises:
        UserError: a name, or that of the line, is no variant, no method, or none that a folder can have.
    """
    if not (grid.methods and grid.seeds and grid.orders):
        raise UserError("compare: methods, seeds and orders each need at least one")
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
    """Every run, a seed of all contestants before the next."""
    for seed in grid.seeds:
        for order in grid.orders:
            for point in points(grid):
                yield GridRun(point, order, seed)


def config_of_run(base: "RunConfig", run: GridRun, tuned: Settings | None = None) -> "RunConfig":
    """The configuration of a run, whose folder is below that of the base.

    Args:
        tuned: settings that a sweep has chosen for its variant, in the place of its own; a point of a curve keeps what
            its curve sets.

    Raises:
        UserError: a setting is unknown or cannot work.
    """
    own = {"seed": run.seed, "order": run.order, "output_dir": str(Path(base.output_dir) / run.folder)}
    content = dataclasses.asdict(base)
    for name in set(method_names()) - {run.point.settings.get("method", base.method)}:
        content.pop(name, None)
    is_of_curve = run.point.strength is not None
    chosen = {name: value for name, value in (tuned or {}).items() if not is_of_curve or name not in run.point.settings}
    return load_config(None, {**run.point.settings, **chosen, **own}, content)


def write_runs(base: "RunConfig", grid: Grid) -> tuple[Path, int]:
    """Writes the configuration of each run, 1.yaml and on, into the folder `runs` of the base's: (it, how many).

    Raises:
        UserError: a file cannot be written.
    """
    folder = expand(base.output_dir) / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    runs = list(grid_runs(grid))
    for number, each in enumerate(runs, 1):
        write_text(folder / f"{number}.yaml", to_yaml(config_of_run(base, each)))
    return folder, len(runs)
