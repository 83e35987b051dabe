"""Configuration: files, overrides, help, and writing to a file."""

import re
from pathlib import Path
from typing import get_args

import pytest

from codyra_llm.config import (
    RunConfig,
    config_fields,
    load_config,
    parse_command_line,
    resolve_path,
    to_yaml,
)
from codyra_llm.errors import UserError
from tests.conftest import REPOSITORY

NAMED_BY_THE_ADAPTER = ("adapter.dense_fraction", "adapter.importance_decay")  # its own range checks come first
FLOATS = [
    name
    for name, field in config_fields()
    if float in (field.type, *get_args(field.type)) and name not in NAMED_BY_THE_ADAPTER
]


def test_every_field_has_a_help_text_and_can_be_overridden(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_command_line(["--help"], "what it does")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name, field in config_fields():
        assert field.metadata["help"]
        assert re.search(rf"^  --{re.escape(name)} ", shown, re.MULTILINE), name
    assert "settings of `train`:" in shown
    assert "--data.packing {none,bucket,pack}" in shown
    assert "--evaluate.parity [true|false]" in shown


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_are_valid_and_survive_a_round_trip(file: Path, tmp_path: Path) -> None:
    config = load_config(file)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("seed: 1\nadapter: {rank: 4}\nevaluate: {parity: false}\n")
    arguments = [
        "--adapter.rank",
        "8",
        "--evaluate.parity",
        "true",
        "--train.learning_rate",
        "1e-4",
        "--data_dir",
        "12",
    ]
    config = parse_command_line(["--config", str(file), *arguments], "")
    assert (config.seed, config.adapter.rank, config.evaluate.parity) == (1, 8, True)
    assert (config.train.learning_rate, config.data_dir) == (1e-4, "12")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("FOMC", "FOMC"), ("order2", "order2"), ("FOMC,Py150", ("FOMC", "Py150")), ("[A, B]", ("A", "B"))],
)
def test_orders_on_the_command_line(text: str, expected: object) -> None:
    assert parse_command_line(["--config", "/dev/null", "--order", text], "").order == expected


def test_targets_on_the_command_line() -> None:
    for text, expected in (("q_proj", ("q_proj",)), ("q_proj,v_proj", ("q_proj", "v_proj"))):
        config = parse_command_line(["--config", "/dev/null", "--adapter.target_modules", text], "")
        assert config.adapter.target_modules == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((name, value, "it must be a finite number") for name in FLOATS for value in (float("nan"), float("inf"))),
        ("adapter.rank", True, "it is not a yes-or-no setting"),
        ("train.learning_rate", False, "it is not a yes-or-no setting"),
        ("adapter.gate_learning_rate", 0, "it must be above 0"),
        ("train.warmup_steps", -1, "it must be at least 0"),
        ("train.num_train_epochs", 0, "it must be above 0"),
        ("train.adam_beta1", 1.0, "it must be at least 0 and below 1"),
        ("train.adam_beta2", -0.1, "it must be at least 0 and below 1"),
        ("train.adam_epsilon", 0, "it must be above 0"),
        ("train.weight_decay", -1e-3, "it must be at least 0"),
        ("merge.scale", 0, "it must be above 0 and at most 1"),
        ("merge.scale", 1.5, "it must be above 0 and at most 1"),
    ],
)
def test_values_that_cannot_work_are_named(name: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=f"{name} is .*; {message}"):
        load_config(overrides={name: value})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: caf\xe9", r"not UTF-8 text \(byte 9\); save it as UTF-8"),
        (b"[" * 3000, "nested too deeply; --config takes a YAML file"),
        (b"seed: 1\ntrain: {}\nseed: 2\n", 'not valid YAML: the key "seed" is listed twice .*line 3'),
        (b"seed: 2024-13-45", "not valid YAML: month must be in 1..12"),
        (b"{1: 2, null: 3}", 'unknown key "1"'),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_config(file)
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


def test_a_key_may_stand_beside_one_that_is_merged_in(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("train: &t {learning_rate: 0.1}\nmerge: {<<: &m {scale: 0.5}, scale: 0.6}\n")
    assert load_config(file).merge.scale == 0.6


def test_options_are_not_abbreviated() -> None:
    with pytest.raises(
        UserError,
        match=r"command line: unrecognized arguments: --adapter\.ran 8 \(did you mean --adapter\.rank\?\); see --help",
    ):
        parse_command_line(["--config", "/dev/null", "--adapter.ran", "8"], "")


def test_a_home_folder_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="~nouser/x: no such home folder; write the path without ~"):
        resolve_path("~nouser/x")


def test_the_specified_defaults() -> None:
    config = RunConfig()
    assert (config.adapter.rank, len(config.adapter.target_modules), config.adapter.threshold_mode) == (
        16,
        7,
        "importance",
    )
    assert (config.adapter.dense_fraction, config.adapter.strength) == (0.5, 0.5)
    assert (config.train.adam_beta1, config.train.adam_beta2, config.train.weight_decay) == (0.9, 0.9999, 0.0)
    assert (config.train.learning_rate, config.train.max_grad_norm, config.train.global_batch_size) == (5e-4, 1.0, 32)


def test_a_configuration_by_its_name_and_a_flag_without_a_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_command_line(["--config", "quickstart", "--evaluate.parity", "--seed", "3"], "")
    assert config == load_config(REPOSITORY / "configs" / "quickstart.yaml", {"evaluate.parity": True, "seed": 3})
    (tmp_path / "quickstart").write_text("seed: 5")
    assert parse_command_line(["--config", "quickstart"], "").seed == 5, "a file of the user's comes first"
    with pytest.raises(UserError, match=r"--config quickstrt: no such file, .*; did you mean quickstart\?"):
        parse_command_line(["--config", "quickstrt"], "")


def test_nothing_for_a_list_is_an_empty_one() -> None:
    config = parse_command_line(["--tracking", "", "--general.suites", ""], "")
    assert (config.tracking, config.general.suites) == ((), ())
