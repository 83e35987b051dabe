"""Export of a ledger as one PEFT adapter, and import of an adapter that PEFT trained as an entry."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import regex
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from codyra_llm.adapter.merging import Deltas, norm_of_product
from codyra_llm.errors import UserError, reason
from codyra_llm.files import read_json
from codyra_llm.ledger.combination import combination
from codyra_llm.ledger.entry import CONFIG, PREFIX, WEIGHTS, summed, write_entry
from codyra_llm.ledger.ledger import FILE, Entry, Ledger, check_base, write_ledger
from codyra_llm.ledger.materialize import check_shapes
from codyra_llm.models.load import meta_model
from codyra_llm.models.shards import checkpoint_tensors
from codyra_llm.models.source import check_any, open_source
from codyra_llm.text import shown

OF_A_SUM = "The sum of these updates, which belongs to the base model alone, as it was before any of them: "
# settings of PEFT that, if set, make an adapter more than W + B A, or change W itself
NOT_AN_UPDATE = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "fan_in_fan_out",
)
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # init_lora_weights that also rewrite W


def export_sum(
    folder: Path,
    ledger: Ledger,
    shares: Mapping[str, float],
    output: Path,
    rank: int | None,
    belongs: str | None = None,
) -> int:
    """Writes the selected shares of entries as one adapter; returns its largest rank.

    Args:
        folder: the folder of the ledger.
        ledger: its content.
        shares: {entry: its share}.
        output: the new folder.
        rank: every projection is padded to this rank; None: each keeps its own.
        belongs: text that names the model that the adapter belongs to; by default the base model.

    Raises:
        UserError: the output folder already exists or cannot be written, or a projection needs a larger rank.
    """
    if output.exists():
        raise UserError(f"{output}: already exists; name a new folder")
    combine = combination(ledger.combined, str(folder / FILE))
    updates = dict(summed([folder / entry for entry in shares], shares=list(shares.values()), combine=combine))
    with _writing(output):
        write_entry(output, updates, ledger.base_model.name, belongs or OF_A_SUM + ", ".join(shares), rank)
    return rank or max((len(A) for _, A in updates.values()), default=0)


def append_adapter(folder: Path, ledger: Ledger, adapter: Path, task: str, base: str | None) -> Entry:
    """Adds a LoRA adapter in PEFT's format as the next entry; returns the entry.

    Args:
        folder: the folder of the ledger.
        ledger: its content.
        adapter: a folder in PEFT's format.
        task: name of the entry's task.
        base: where the base model is; None: the name that the run used.

    Raises:
        UserError: the adapter is more than a low-rank update, is damaged, or does not match the base model.
    """
    if not re.fullmatch(r"[\w.+-]+", task):
        raise UserError(f'task "{task}": use letters, digits and . + - _ only; it names a folder')
    source = open_source(base or ledger.base_model.name, check=check_any)
    check_base(ledger, source)
    updates = read_adapter(adapter)
    layout = checkpoint_tensors(meta_model(source.config))
    check_shapes(adapter, {module: (len(B), A.shape[1]) for module, (B, A) in updates.items()}, layout)
    new = folder / ledger.name_of_next(task)
    with _writing(folder):
        files = write_entry(new, updates, ledger.base_model.name)
    entry = Entry(
        new.name,
        task,
        files,
        projections=len(updates),
        components=sum(len(A) for _, A in updates.values()),
        norm=math.hypot(*(norm_of_product(B, A) for B, A in updates.values())),
    )
    with _writing(folder):
        write_ledger(folder, ledger.with_entry(entry))
    return entry


def read_adapter(folder: Path) -> Deltas:
    """Reads the updates of a LoRA adapter in PEFT's format, with alpha folded into B, in fp32.

    Raises:
        UserError: the adapter is missing, incomplete, or more than a low-rank update of projections.
    """
    deeper = sorted(folder.glob(f"*/{CONFIG}"))
    config = read_json(folder / CONFIG, f"name {deeper[-1].parent}" if deeper else "name an adapter that PEFT saved")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{folder / CONFIG}: not a LoRA adapter; others cannot be added to weights here")
    if not (folder / WEIGHTS).exists() and (pickled := folder / "adapter_model.bin").exists():
        raise UserError(
            f"{pickled}: is pickled, which can run code when it is read; load it with PEFT and save it again"
        )
    start = str(config.get("init_lora_weights")).lower()
    found = [key for key in NOT_AN_UPDATE if config.get(key)]
    found += ["bias"] if config.get("bias", "none") != "none" else []
    found += [f"init_lora_weights {start}"] if start.startswith(CHANGES_THE_BASE) else []
    if found:
        raise UserError(
            f"{folder / CONFIG}: {found[0]}: the adapter is more than an update of W by B A; merge it with PEFT"
        )
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read: {error}") from None
    # keys of a state dict that was saved from PEFT's memory contain the adapter's name
    tensors = {re.sub(r"(\.lora_[AB])\.default\.weight$", r"\1.weight", key): each for key, each in tensors.items()}
    updates = {}
    for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
        module = key.removesuffix(".lora_A.weight")
        A, B = tensors.pop(key).float(), tensors.pop(f"{module}.lora_B.weight", torch.empty(0)).float()
        if A.ndim != 2 or B.ndim != 2 or B.shape[1] != len(A) or 0 in (len(A), len(B), A.shape[1]):
            raise UserError(
                f"{folder / WEIGHTS}: {module}: lora_A {list(A.shape)} and lora_B {list(B.shape)} do not fit"
            )
        module = module.removeprefix(PREFIX)
        try:
            scaling = _scaling(config, module, len(A))
        except (TypeError, ValueError, AttributeError, ArithmeticError, TimeoutError, regex.error) as error:
            raise UserError(f"{folder / CONFIG}: alpha or its pattern for {shown(module)} is unfit: {error}") from None
        updates[module] = (B * scaling).contiguous(), A.contiguous()
        if not (torch.isfinite(updates[module][0]).all() and torch.isfinite(A).all()):
            raise UserError(f"{folder / WEIGHTS}: {shown(module)} holds values that are not finite")
    if tensors or not updates:
        problem = f"{next(iter(tensors))} is not part of an update of a projection" if tensors else "no update in it"
        raise UserError(f"{folder / WEIGHTS}: {problem}")
    return updates


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be written: {reason(error)}") from None


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    """Returns PEFT's factor of B A: alpha / r, or alpha / sqrt(r) for rsLoRA; patterns are matched as in PEFT."""
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    matched = [alpha for key, alpha in patterns.items() if regex.match(rf"(.*\.)?({key})$", module, timeout=1)]
    alpha = matched[0] if matched else config.get("lora_alpha", 8)  # PEFT's default
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
