"""Untrusted ledgers and adapters: names that leave the folder, damage with a correct hash, what the seal covers."""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from codyra_llm.data.stream import TaskStream
from codyra_llm.errors import UserError
from codyra_llm.files import replace_folder, sha256
from codyra_llm.ledger.describe import compare
from codyra_llm.ledger.entry import CONFIG, WEIGHTS, read_entry, summed, write_entry
from codyra_llm.ledger.ledger import BaseModel, Entry, Ledger, copy_entries, parse_ledger, read_ledger, write_ledger
from codyra_llm.ledger.materialize import check_fit, materialize
from codyra_llm.ledger.peft_io import export_sum, read_adapter
from codyra_llm.models.fingerprint import model_hash

Q = "model.layers.0.self_attn.q_proj"
KEYS = [f"base_model.model.{Q}.lora_{factor}.weight" for factor in "AB"]
OUTSIDE = [
    "../../victim",
    "/tmp/victim",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "nul\0",
    "\ud800",
    "line\nbreak",
    "n" * 256,
    3,
    None,
]


@pytest.fixture
def ledger(tiny_folder: Path, tmp_path: Path) -> Path:
    """Folder of a ledger with one entry."""
    folder = tmp_path / "run" / "ledger"
    torch.manual_seed(0)
    files = write_entry(folder / "01-one", {Q: (torch.randn(32, 2), torch.randn(2, 32))}, "base")
    base = BaseModel(str(tiny_folder), model_hash(str(tiny_folder)), "float32")
    write_ledger(folder, Ledger(base, (Entry("01-one", "one", files, 1, 2, 1.0),)))
    return folder


def rewrite(ledger: Path, change: Callable[[dict[str, Any]], None], seal: bool = True) -> None:
    """Changes ledger.json; with `seal`, updates its state hash as well, as anybody who knows the format can."""
    content = json.loads((ledger / "ledger.json").read_text())
    change(content)
    if seal:
        content["state"] = parse_ledger(content, "").state
    (ledger / "ledger.json").write_text(json.dumps(content))


def sealed_again(ledger: Path, tensors: dict[str, torch.Tensor] | None, content: bytes = b"") -> None:
    file = ledger / "01-one" / WEIGHTS
    if tensors is None:
        file.write_bytes(content)
    else:
        save_file(tensors, file)
    rewrite(ledger, lambda json: json["entries"][0]["sha256"].update({WEIGHTS: sha256(file)}))


def rename(key: str, name: object, content: dict[str, Any]) -> None:
    content["entries"][0][key] = name


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_elsewhere(name: object, ledger: Path) -> None:
    victim = ledger.parent / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("years of work")
    for key in ("name", "task"):
        rewrite(ledger, partial(rename, key, name), seal=False)
        with pytest.raises(UserError):
            read_ledger(ledger)
    if isinstance(name, str):
        with pytest.raises(UserError, match="the task name"):
            TaskStream.from_rows({name: {"train": [], "test": []}})
    assert (victim / "thesis.tex").exists()


@pytest.mark.parametrize("files", [{}, {WEIGHTS: "0" * 64}, {"../x": "0" * 64}, {WEIGHTS: "no hash", CONFIG: "0" * 64}])
def test_files_that_an_entry_does_not_have(files: dict[str, Any], ledger: Path) -> None:
    rewrite(ledger, lambda content: content["entries"][0].update(sha256=files), seal=False)
    with pytest.raises(UserError, match=r"ledger\.json: entr"):
        read_ledger(ledger)


def test_links_are_not_followed_and_nothing_else_is_copied(ledger: Path, tmp_path: Path) -> None:
    entry = ledger / "01-one"
    (entry / "secret").symlink_to("/etc/passwd")
    (entry / "notes.txt").write_text("not the ledger's")
    copy_entries(read_ledger(ledger), ledger, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy" / "01-one").iterdir()} == {WEIGHTS, CONFIG, "README.md"}
    moved = tmp_path / "elsewhere"
    entry.rename(moved)
    entry.symlink_to(moved)
    with pytest.raises(UserError, match="01-one is a link"):
        read_ledger(ledger)
    entry.unlink()
    moved.rename(entry)
    (entry / CONFIG).rename(tmp_path / "config")
    (entry / CONFIG).symlink_to(tmp_path / "config")
    with pytest.raises(UserError, match=f"{CONFIG} is a link"):
        read_ledger(ledger)


def test_a_link_in_the_place_of_a_folder_is_taken_away_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("kept")
    for name in ("entry", "entry.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with replace_folder(tmp_path / "entry") as scratch:
        (scratch / "new").write_text("new")
    assert [path.name for path in (tmp_path / "entry").iterdir()] == ["new"]
    assert (tmp_path / "elsewhere" / "file").read_text() == "kept"


@pytest.mark.parametrize("key", ["dtype", "name", "sha256"])
def test_the_seal_covers_the_base(key: str, ledger: Path) -> None:
    other = {"dtype": "bfloat16", "name": "other", "sha256": "0" * 64}
    rewrite(ledger, lambda content: content["base_model"].update({key: other[key]}), seal=False)
    with pytest.raises(UserError, match="not those that were written"):
        read_ledger(ledger)


@pytest.mark.parametrize("change", [{"norm": 2.0}, {"components": 3}, {"settings": "x"}, {"scores": {"one": 1.0}}])
def test_the_seal_covers_what_is_said_of_an_entry(change: dict[str, Any], ledger: Path) -> None:
    rewrite(ledger, lambda content: content["entries"][0].update(change), seal=False)
    with pytest.raises(UserError, match="not those that were written"):
        read_ledger(ledger)


@pytest.mark.parametrize(
    "change",
    [{"norm": float("nan")}, {"norm": -1}, {"components": -1}, {"components": 1e300}, {"scores": {"a": float("inf")}}],
)
def test_numbers_that_cannot_be(change: dict[str, Any], ledger: Path) -> None:
    rewrite(ledger, lambda content: content["entries"][0].update(change), seal=False)
    with pytest.raises(UserError, match=r"ledger\.json: entries\.0"):
        read_ledger(ledger)


@pytest.mark.parametrize("dtype", ["load", "float64", "", None, 3])
def test_a_dtype_is_one_of_three(dtype: object, ledger: Path) -> None:
    rewrite(ledger, lambda content: content["base_model"].update(dtype=dtype), seal=False)
    with pytest.raises(UserError, match=r"base_model\.dtype"):
        read_ledger(ledger)


def test_a_ledger_of_the_first_version_is_read_and_written_as_the_second(ledger: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["schema_version"], content["state"] = 1, parse_ledger(content, "")._state_of_version_1

    rewrite(ledger, change, seal=False)
    held = read_ledger(ledger)
    write_ledger(ledger, held)
    assert json.loads((ledger / "ledger.json").read_text())["schema_version"] == 2
    assert read_ledger(ledger) == held


@pytest.mark.parametrize("version", [None, 0, 3, True, "2", 10**400])
def test_another_version(version: object, ledger: Path) -> None:
    rewrite(ledger, lambda content: content.update(schema_version=version), seal=False)
    with pytest.raises(UserError, match=r"schema_version is .*this one reads 1 to 2|not valid JSON"):
        read_ledger(ledger)


def test_an_entry_stands_once(ledger: Path) -> None:
    rewrite(ledger, lambda content: content["entries"].append(content["entries"][0]), seal=False)
    with pytest.raises(UserError, match="number 2 is '01-one'"):
        read_ledger(ledger)
    text = (ledger / "ledger.json").read_text()
    (ledger / "ledger.json").write_text(text.replace('"entries"', '"entries": [], "entries"', 1))
    with pytest.raises(UserError, match='the key "entries" is given twice'):
        read_ledger(ledger)


def damaged(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    A, B = (tensors[key] for key in KEYS)
    return {
        "no A": {KEYS[1]: B},
        "no B": {KEYS[0]: A},
        "ranks differ": {KEYS[0]: A[:-1].clone(), KEYS[1]: B},
        "one dimension": {KEYS[0]: A.flatten(), KEYS[1]: B},
        "empty": {KEYS[0]: A[:0].clone(), KEYS[1]: B[:, :0].clone()},
        "another dtype": {KEYS[0]: A.to(torch.int32), KEYS[1]: B},
        "more": {**tensors, "lora_magnitude": A.clone()},
        "NaN": {KEYS[0]: A.clone().fill_(float("nan")), KEYS[1]: B},
        "inf": {KEYS[0]: A, KEYS[1]: B.clone().fill_(float("inf"))},
        "too large a product": {KEYS[0]: A.clone().fill_(1e30), KEYS[1]: B.clone().fill_(1e30)},
        "another shape": {KEYS[0]: torch.randn(2, 31), KEYS[1]: B},
    }[how]


@pytest.mark.parametrize(
    "how",
    ["no A", "no B", "ranks differ", "one dimension", "empty", "another dtype", "more", "NaN", "inf",
     "too large a product", "another shape", "garbage"],
)  # fmt: skip
def test_damage_under_a_right_hash_is_told_in_one_line(how: str, ledger: Path, tmp_path: Path) -> None:
    if how == "garbage":
        sealed_again(ledger, None, b"garbage")
    else:
        sealed_again(ledger, damaged(load_file(ledger / "01-one" / WEIGHTS), how))
    held, shares = read_ledger(ledger), {"01-one": 1.0}
    acts: dict[str, Callable[[], object]] = {
        "verify": lambda: check_fit(ledger, held, None),
        "materialize": lambda: materialize(ledger, held, shares, tmp_path / "model", None, None),
        "export": lambda: export_sum(ledger, held, shares, tmp_path / "adapter", None),
        "diff": lambda: compare(ledger, held, ledger, dataclasses.replace(held, entries=())),
    }
    fits = {"too large a product": {"verify"}, "another shape": {"export", "diff"}}.get(how, set())
    for name, act in acts.items():
        if name in fits:
            continue
        with pytest.raises(UserError, match=r"01-one|ledger"):
            act()
    assert not (tmp_path / "model").exists() and not (tmp_path / "adapter").exists()


def test_a_share_that_overflows(ledger: Path) -> None:
    with pytest.raises(UserError, match=r"the sum of the updates of .*q_proj may reach"):
        list(summed([ledger / "01-one"], shares=[1e39]))


def test_files_can_be_read_by_those_whom_the_umask_lets(ledger: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in (ledger / "01-one").iterdir()}
    assert modes == {(ledger / "ledger.json").stat().st_mode & 0o777}


def adapter_of(ledger: Path, tmp_path: Path, **changes: object) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(load_file(ledger / "01-one" / WEIGHTS), folder / WEIGHTS)
    config = json.loads((ledger / "01-one" / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))
    return folder


def test_an_adapter_whose_keys_name_it(ledger: Path, tmp_path: Path) -> None:
    folder = adapter_of(ledger, tmp_path)
    renamed = {key.replace(".weight", ".default.weight"): each for key, each in load_file(folder / WEIGHTS).items()}
    save_file(renamed, folder / WEIGHTS)
    (B, A), (expected_B, expected_A) = read_adapter(folder)[Q], read_entry(ledger / "01-one")[Q]
    assert torch.equal(B, expected_B) and torch.equal(A, expected_A)


def test_an_adapter_that_is_pickled_or_one_folder_down(ledger: Path, tmp_path: Path) -> None:
    folder = adapter_of(ledger, tmp_path)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin: is pickled, .*; load it with PEFT and save it again"):
        read_adapter(folder)
    (tmp_path / "training").mkdir()
    folder.rename(tmp_path / "training" / "checkpoint-100")
    with pytest.raises(UserError, match=r"name .*training/checkpoint-100"):
        read_adapter(tmp_path / "training")


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": "8", "alpha_pattern": {}},
        {"lora_alpha": float("nan"), "alpha_pattern": {}},
        {"lora_alpha": 1e39, "alpha_pattern": {}},
        {"alpha_pattern": {"(": 1}},
        {"alpha_pattern": ["q_proj"]},
        {"alpha_pattern": {"q_proj": "a"}},
        {"peft_type": 3},
    ],
)
def test_an_adapter_whose_settings_cannot_be(changes: dict[str, Any], ledger: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{CONFIG}|{WEIGHTS}"):
        read_adapter(adapter_of(ledger, tmp_path, **changes))
