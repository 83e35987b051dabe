"""Commands: no setting applies silently, values in errors are shortened, and how a command ends."""

import errno
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest

from codyra_llm.cli import completion, evaluate, judge
from codyra_llm.command import main
from codyra_llm.config import RunConfig, config_fields, describe, load_config, parse_command_line, to_yaml
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.distributed.ranks import on_rank_0, start
from codyra_llm.errors import UserError
from codyra_llm.evaluation.judge.config import config_of
from codyra_llm.example import Example
from codyra_llm.files import cache_folder, read_json, read_yaml
from codyra_llm.planning.footprint import parse_size
from codyra_llm.text import LINE, SHOWN, shown
from tests.conftest import REPOSITORY

WRONG = {
    "train --tran.steps 3": "did you mean --train.steps?",
    "train --train.learning_rate -3": "train.learning_rate is -3.0; it must be above 0",
    "train --train.learning_rate fast": "found 'fast'",
    "train --config smke": "did you mean smoke?",
    "train --method ewcc": "method is 'ewcc'; there are agem, codyra, codyra_contrast,",
    "train --method memory": "method is 'memory'",
    "train --config {folder}/config.yaml": 'config.yaml: unknown key "adapter.rnk"; did you mean "adapter.rank"?',
    "evaluate --model x --adapter.rank 0": "adapter.rank is 0; it must be at least 1",
    "evaluate --run {folder} --model x": "give one of them",
    "plan --gpu-memory 80GB --adapter.rank 0": "adapter.rank is 0; it must be at least 1",
    "compare --config compare_nano --adapter.rank 0": "adapter.rank is 0; it must be at least 1",
    "compare --config compare_nano --methods lara": "lara is neither a variant of the file nor a method",
    "prepare --data_dr x": "required: --data_dir",
    "score --task FOMC": "give --task NAME FILE.jsonl",
    "judge --model x": "required: --against, --prompts",
    "selfcheck --gpus": "did you mean --gpu?",
    **dict.fromkeys(
        (
            f"{name} --bogus"
            for name in ("probe ranks x", "chat", "push", "init", "report", "metrics", "ledger", "materialize")
        ),
        "see --help",
    ),
}
EARLY = """
import json, sys
from importlib import import_module
from codyra_llm.errors import UserError

said = {}
for line in json.loads(sys.argv[1]):
    sys.argv = line.split()
    try:
        import_module(f"codyra_llm.cli.{sys.argv[0]}").command()
    except UserError as error:
        said[line] = str(error)
print(json.dumps([said, "torch" in sys.modules]))
"""

NUMERIC = [name for name, field in config_fields() if {int, float} & {field.type, *get_args(field.type)}]


def test_mistakes_are_answered_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("adapter: {rnk: 8}")
    wrong = {line.format(folder=tmp_path): answer for line, answer in WRONG.items()}
    program = [sys.executable, "-c", EARLY, json.dumps(list(wrong))]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120)
    said, has_torch = json.loads(done.stdout)
    assert not [(line, said.get(line)) for line, answer in wrong.items() if answer not in said.get(line, "")]
    assert not has_torch


def test_without_a_file_every_setting_has_its_default() -> None:
    assert parse_command_line([], "") == RunConfig()
    said = describe(parse_command_line(["--seed", "5"], ""))
    assert "seed 5" in said and "train.num_train_epochs empty" in said and "data.max_train_examples empty" in said
    assert "adapter.rank" not in said


def test_what_the_quickstart_changes_is_said() -> None:
    said = describe(load_config(REPOSITORY / "configs" / "quickstart.yaml"))
    for setting in ("data.max_train_examples 32", "train.learning_rate 0.003", "evaluate.max_new_tokens 22"):
        assert setting in said


@pytest.mark.parametrize("name", NUMERIC)
@pytest.mark.parametrize("value", [1e300, 10**400, -(10**400), 2**63, math.inf, math.nan])
def test_every_number_has_bounds(name: str, value: float) -> None:
    with pytest.raises(UserError) as error:
        load_config(None, {name: value})
    assert name.rpartition(".")[2] in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("option", ["timeout", "retries", "concurrency", "max_new_tokens", "batch_size"])
@pytest.mark.parametrize("value", ["1e300", "9" * 400, "nan"])
def test_every_number_of_a_judge_has_bounds(option: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--{option}"):
        config_of(
            judge.make_parser().parse_args(["--model", "a", "--against", "b", "--prompts", "c", f"--{option}", value])
        )


@pytest.mark.parametrize("text", ["9" * 400 + "GB", "1e300GB", "0GB", "1000000000000GB"])
def test_a_size_of_memory_has_bounds(text: str) -> None:
    with pytest.raises(UserError, match="is not a size of memory"):
        parse_size(text)


def test_steps_have_a_bound_and_take_no_memory() -> None:
    examples = [Example([1], [2])] * 10
    batches = GlobalBatches(examples, 5, 1, 1e8, 1, "task")
    assert batches.total_steps == 2 * 10**8
    assert sorted(batches.rows_of(10**8) + batches.rows_of(10**8 + 1)) == list(range(10))
    with pytest.raises(UserError, match=r"optimizer steps; lower the epochs"):
        GlobalBatches(examples, 1, 1, 1e9, 1, "task")


def bomb(levels: int = 20) -> str:
    rows = [f"&{chr(97 + n)} [{','.join(['*' + chr(96 + n)] * 10)}]" for n in range(1, levels)]
    return f"seed: [&a [x,x,x,x,x,x,x,x,x,x], {', '.join(rows)}]\n"


@pytest.mark.timeout(60)
def test_aliases_are_neither_expanded_nor_echoed(tmp_path: Path) -> None:
    for content in (bomb(), bomb().replace("seed", "model"), bomb().replace("seed", "order"), f"x: {bomb()[6:]}"):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(UserError) as error:
            load_config(tmp_path / "config.yaml")
        assert len(str(error.value)) < 1000


def test_a_value_is_shown_in_bounds() -> None:
    nested: list[Any] = ["x"] * 10
    for _ in range(12):
        nested = [nested] * 10
    for value in (nested, "a" * 10**6, 10**5000, {"k" * 1000: nested}, b"x" * 10**6):
        assert len(shown(value)) <= SHOWN
    assert shown("it") == "'it'"
    for word in ("a", "&key", "a://", "@"):
        assert len(str(UserError(word * 10**6))) <= LINE
    assert str(UserError("a\x1b[31m\nb\u2028c")) == "a\\x1b[31m\\nb\\u2028c"


@pytest.mark.parametrize(
    "content",
    ["!!python/object/apply:os.getcwd []", "a: !!int ''", "a: !!bool x", "? [a, b]\n: 1", "a: 2026-13-45", "a: &x [*y]",
     "[" * 2000, "a: 1\na: 2", "a: \x00", "--- 1\n--- 2"],
)  # fmt: skip
def test_yaml_that_makes_no_sense_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(content)
    with pytest.raises(UserError, match=r"file\.yaml: (not valid YAML|nested too deeply)"):
        read_yaml(tmp_path / "file.yaml")


@pytest.mark.parametrize("content", ['{"a": 1, "a": 2}', '[{"b": {"a": 1, "a": 1}}]'])
def test_json_that_gives_a_key_twice(content: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(UserError, match='the key "a" is given twice'):
        read_json(tmp_path / "file.json")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODYRA_CACHE", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))
    with pytest.raises(UserError, match="no home folder to keep caches in; set CODYRA_CACHE"):
        cache_folder()


@pytest.mark.parametrize("status", [None, 0, 1, 7, "a word"])
def test_code_of_others_that_exits_is_no_success(status: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(lambda: sys.exit(status))
    assert stop.value.code == 1
    assert capsys.readouterr().err == f"error: a library or a suite's code called sys.exit({status!r})\n"


@pytest.mark.parametrize(
    ("number", "comforts"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False), (errno.ENOENT, False)]
)
def test_comfort_is_given_where_it_is_true(number: int, comforts: bool) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number), "file")

    with pytest.raises(UserError) as error:
        on_rank_0(start(), fail)
    assert ("what was kept until now is whole" in str(error.value)) == comforts


@pytest.mark.parametrize("option", [["--output_dir=~/x"], ["--output_dir", "~/x"]])
def test_a_batch_script_finds_the_folder_that_python_means(option: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "home" / "x"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "bin").mkdir()
    commands = {
        "srun": f'until [ -f "{folder}/stop" ]; do sleep 0.1; done; touch "{folder}/stopped"; exit 75',
        "squeue": "echo RUNNING",
        "scontrol": "echo node1",
    }
    for name, text in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "PATH": f"{tmp_path / 'bin'}:{sys.prefix}/bin:{os.environ['PATH']}",
        **{"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1", "VENV": "/none"},
    }
    command = ["bash", "scripts/slurm/train_trace.sbatch", "--config", "c.yaml", *option]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    process.send_signal(10)
    assert "queued again" in process.communicate(timeout=30)[0]


def test_a_batch_script_refuses_what_only_python_would_expand() -> None:
    command = ["bash", "scripts/slurm/train_trace.sbatch", "--output_dir=~somebody/x"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --output_dir ~somebody/x: write the path without ~\n")


def test_a_model_of_a_run_is_scored_as_the_run_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved = load_config(None, {"model.quantization": "nf4", "order": ["FOMC"], "data.chat_template": "auto", "seed": 3})
    (tmp_path / "x" / "model").mkdir(parents=True)
    (tmp_path / "x" / "config.yaml").write_text(to_yaml(saved))
    _, config = evaluate.parse_arguments(["--model", "x/model", "--evaluate.batch_size", "2"])
    assert (config.order, config.data.chat_template, config.seed) == (("FOMC",), "auto", 3)
    assert (config.model.name_or_path, config.model.quantization) == ("x/model", None), "it is saved quantized"
    assert (config.output_dir, config.evaluate.batch_size) == ("runs/scores-x", 2)
    _, suites = evaluate.parse_arguments(["--model", "x/model", "--suites", "boolq", "--output_dir", "y"])
    assert (suites.general.suites, suites.data.chat_template, suites.output_dir) == (("boolq",), "auto", "y")
    _, other = evaluate.parse_arguments(["--model", "x/model", "--config", "smoke"])
    assert (other.data.chat_template, other.output_dir) == ("none", "runs/smoke")


def test_a_reader_that_leaves_early() -> None:
    """`codyra --help | head -1`, and the same for a command's own help."""
    for arguments in ("--help", "train --help"):
        command = f"set -o pipefail; {sys.executable} -m codyra_llm.cli {arguments} | (read -r line; echo $line)"
        done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["train", "--adapter.threshold_s"], ["--adapter.threshold_strength"]),
        (["evaluate", "--su"], ["--suites"]),
        (["ledger", "export", "x", "--onl"], ["--only"]),
        (["completion", ""], ["bash", "zsh", "tcsh"]),
    ],
)
def test_a_shell_completes(words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["codyra completion", "bash"])
        completion.command()
    ask = f"COMP_WORDS=(codyra {' '.join(word or repr(word) for word in words)}); COMP_CWORD={len(words)}"
    script = f"{capsys.readouterr().out}\n{ask}; _shtab_codyra 2>/dev/null; printf '%s\\n' ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.split()[: len(expected)] == expected
