"""The ceilings (rates and latencies) of a machine that the time of a run depends on: stated, or from the self-check.

Stated numbers are those of the vendors' data sheets times a share that programs reach (`REACHED`), which is an
assumption. Latencies of collectives are those that NCCL uses to choose its algorithms (src/graph/tuning.cc, ring).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codyra_llm.errors import UserError
from codyra_llm.files import read_json
from codyra_llm.text import shown


@dataclass(frozen=True)
class Protocol:
    """A protocol of collectives: latency in seconds of a step within a node and between nodes, share of bandwidth."""

    link: float
    network: float
    share: float = 1.0


# LL, LL128, Simple: increasing latency, increasing share of the bandwidth
NCCL = (Protocol(0.6e-6, 2.7e-6, 0.25), Protocol(1.9e-6, 4.0e-6, 120 / 128), Protocol(3.4e-6, 14e-6))


@dataclass(frozen=True)
class Ceilings:
    """The ceilings of a machine: rates in operations or bytes per second, times in seconds.

    Attributes:
        name: of the machine.
        flops: rate of matrix products of one device, in the base's dtype.
        memory: rate of reading and writing memory of one device.
        link: rate at which a device receives from others of its node.
        network: rate at which a whole node receives from others, through all its network adapters.
        host: rate of copies to a device from its host.
        devices: number of devices of a node.
        call: time until a collective operation has started.
        layer: time that the host takes to launch the operations of one decoder layer in one pass.
        disk: rate at which one process reads or writes files of the run folder, and one node reads the model.
        hashing: rate of SHA-256 in one process.
        fetch: time that DeepSpeed's host code takes, at ZeRO stage 3, to fetch and release one weight in one pass,
            in addition to the collective.
        protocols: of collectives.
        ahead: whether the host launches operations while the device computes others.
        source: description of where the numbers are from.
    """

    name: str
    flops: float
    memory: float
    link: float
    network: float
    host: float
    devices: int
    call: float
    layer: float
    disk: float
    hashing: float
    fetch: float = 0.0
    protocols: tuple[Protocol, ...] = NCCL
    ahead: bool = True
    source: str = ""


REACHED = {"flops": 0.65, "memory": 0.85, "link": 0.8, "network": 0.9, "host": 0.8}
SHEETS: dict[str, dict[str, Any]] = {
    "a100": {
        "flops": 312e12, "memory": 2.039e12, "link": 300e9, "network": 8 * 25e9, "host": 32e9,
        "source": "NVIDIA A100 80GB SXM data sheet; eight to a node with 200 Gb/s of InfiniBand each (DGX A100)",
    },
    "h100": {
        "flops": 989e12, "memory": 3.35e12, "link": 450e9, "network": 8 * 50e9, "host": 64e9,
        "source": "NVIDIA H100 SXM data sheet; eight to a node with 400 Gb/s of InfiniBand each (DGX H100)",
    },
    "h200": {
        "flops": 989e12, "memory": 4.8e12, "link": 450e9, "network": 8 * 50e9, "host": 64e9,
        "source": "NVIDIA H200 SXM data sheet; eight to a node with 400 Gb/s of InfiniBand each (DGX H200)",
    },
}  # fmt: skip
# assumptions about the launch of kernels and collectives under PyTorch, and about a shared file system
ASSUMED: dict[str, Any] = {"devices": 8, "call": 20e-6, "layer": 4e-4, "fetch": 5e-4, "disk": 2e9, "hashing": 1.5e9}
MEASURED = ("flops", "memory", "layer", "disk", "hashing")  # by the self-check, on one device
# bounds far beyond any machine: a number outside is in another unit, such as 989 for teraflops
RATES = (1e6, 1e20, "in operations or bytes a second")
SECONDS = (1e-9, 10.0, "in seconds")
WITHIN = {"call": SECONDS, "layer": SECONDS, "fetch": SECONDS, "devices": (1, 10_000, "whole")}
NUMBERS = [field.name for field in dataclasses.fields(Ceilings) if field.type in (int, float, "int", "float")]


def known(name: str) -> Ceilings:
    """Returns the stated ceilings of a known GPU (a100, h100, h200)."""
    sheet = SHEETS[name]
    rates = {what: sheet[what] * share for what, share in REACHED.items()}
    reached = ", ".join(f"{what} {share:g}" for what, share in REACHED.items())
    source = f"stated: {sheet['source']}; of which is reached, by assumption: {reached}"
    return Ceilings(name, **rates, **ASSUMED, source=source)


def find_ceilings(name_or_file: str) -> Ceilings:
    """Returns ceilings of a known GPU, of a selfcheck.json, or of a JSON file like {"like": "h100", "disk": 5e9}.

    Ceilings that the file does not contain are those stated for the GPU in "like"; for a selfcheck.json this is the GPU
    that it was measured on.

    Raises:
        UserError: the argument is neither a known GPU nor such a file, or the file's content is invalid.
    """
    if name_or_file in SHEETS:
        return known(name_or_file)
    path, names = Path(name_or_file), ", ".join(SHEETS)
    content = read_json(path, f"give one of {names}, a selfcheck.json, or a JSON file with ceilings")
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: ceilings are a JSON object, found {type(content).__name__}")
    given = _of_selfcheck(path, content) if "parts" in content else dict(content)
    like = given.pop("like", None)
    if not isinstance(like, str) or like not in SHEETS:
        raise UserError(f'{path}: "like" is {like!r}; it must be one of {names}, whose links are taken')
    for what, value in given.items():
        if what not in NUMBERS:
            raise UserError(f"{path}: {what} is no ceiling; there are {', '.join(NUMBERS)}")
        low, high, unit = WITHIN.get(what, RATES)
        kinds = int if what == "devices" else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            raise UserError(f"{path}: {what} is {shown(value)}; it must be a number from {low:g} to {high:g}, {unit}")
    source = f"{path}: {', '.join(given) or 'nothing'}; all else {known(like).source}"
    return dataclasses.replace(known(like), name=f"{like}, measured", **given, source=source)


def _of_selfcheck(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the ceilings that the self-check measured, and "like": the known GPU that its device is."""
    try:
        rows = {part["part"]: {row.get("what"): row.get("found") for row in part["rows"]} for part in content["parts"]}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: is no selfcheck.json; codyra selfcheck --output_dir FOLDER writes one") from None
    device = str(rows.get("machine", {}).get("device", ""))
    if not rows.get("ceilings"):
        raise UserError(f"{path}: has no part on ceilings; codyra selfcheck --parts machine,ceilings measures them")
    like = next((name for name in SHEETS if name in device.lower()), None)
    if like is None:
        raise UserError(
            f"{path}: its device is {device or 'not named'}, whose links are not known; write a JSON file with "
            f'"like" (one of {", ".join(SHEETS)}) and what is known of it: {", ".join(NUMBERS)}'
        )
    return {"like": like} | {what: value for what, value in rows["ceilings"].items() if what in MEASURED}
