"""Configuration: files, overrides, help, and back to a file."""

from pathlib import Path

import pytest

from codyra_llm.config import REPOSITORY, RunConfig, config_fields, load_config, parse_command_line, to_yaml


def test_every_field_has_a_help_text_and_can_be_overridden(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_command_line(["--help"], "what it does")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name, field in config_fields():
        assert field.metadata["help"]
        assert f"--{name} VALUE" in shown


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
