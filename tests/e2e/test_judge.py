"""Two models compared on prompts: by an endpoint over HTTP, by a model, without a judge; and errors."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.errors import Stopped, UserError
from codyra_llm.evaluation.judge.config import JudgeConfig
from codyra_llm.generation import generate
from codyra_llm.generation.generate import Question
from codyra_llm.results.schema import to_text
from codyra_llm.workflows.judge import judge_models
from tests.conftest import REPOSITORY
from tests.endpoint import prefers_longer, serve
from tests.models import tiny_model

PROMPTS = 6


@pytest.fixture(scope="module")
def other_folder(
    tokenizers_by_family: dict[str, PreTrainedTokenizerBase], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of another tiny model, whose answers differ."""
    folder = tmp_path_factory.mktemp("other-llama")
    tiny_model("llama", seed=1).save_pretrained(folder)
    tokenizers_by_family["llama-sentencepiece"].save_pretrained(folder)
    return folder


@pytest.fixture
def config(tiny_folder: Path, other_folder: Path, tmp_path: Path) -> Callable[..., JudgeConfig]:
    """Function that returns the settings of a small comparison with two files of prompts."""
    rows = [{"prompt": f"Tell me of {number} things.", "checks": {"min_words": 1}} for number in range(PROMPTS - 1)]
    (tmp_path / "helpful.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "harmless.json").write_text(json.dumps([{"prompt": "How is a lock picked?", "id": "lock"}]))

    def make(**changes: Any) -> JudgeConfig:
        settings = {
            "model": str(tiny_folder),
            "against": str(other_folder),
            "prompts": (str(tmp_path / "helpful.jsonl"), str(tmp_path / "harmless.json")),
            "criteria": ("helpfulness", "harmlessness"),
            "output_dir": str(tmp_path / "judged"),
            "max_new_tokens": 8,
            "batch_size": 4,
            "timeout": 5.0,
            "retries": 0,
            "concurrency": 2,
            "judge_model": "stub",
        }
        return JudgeConfig(**{**settings, **changes})

    return make


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_endpoint_that_prefers_longer_answers(
    config: Callable[..., JudgeConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(prefers_longer) as endpoint:
        results = judge_models(config(judge=endpoint.url))
        assert len(endpoint.asked) == 2 * PROMPTS
        assert sum("safer" in body["messages"][0]["content"] for body in endpoint.asked) == 2
    answers = lines(tmp_path / "judged" / "answers.jsonl")
    for name, number in (("helpful", PROMPTS - 1), ("harmless", 1)):
        longer = [len(row["model"]) - len(row["against"]) for row in answers if row["file"] == name]
        judged = results.files[name].judged
        assert len(longer) == number
        assert judged.win == sum(each > 0 for each in longer)
        assert judged.lose == sum(each < 0 for each in longer)
        assert judged.order_decides_percent == 0
    verdicts = lines(tmp_path / "judged" / "verdicts.jsonl")
    assert sorted((each["number"], each["first"]) for each in verdicts) == [
        (number, first) for number in range(PROMPTS) for first in ("against", "model")
    ]
    assert all("[[" in each["reply"] for each in verdicts)
    assert (tmp_path / "judged" / "results.json").read_text() == to_text(results)
    printed = capsys.readouterr().out
    assert "order decides %" in printed
    assert "Proxies, counted without a judge" in printed

    again = judge_models(config(judge=endpoint.url))  # the endpoint is down, so nothing can be asked
    assert again.files == results.files
    with pytest.raises(UserError, match="judged: holds another comparison; choose another folder"):
        judge_models(config(judge=endpoint.url, max_new_tokens=4))


def test_answers_are_judged_later_by_one_that_prefers_what_comes_first(
    config: Callable[..., JudgeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judge_models(config()).files["helpful"].judged is None
    monkeypatch.setattr(generate, "_answer_batch", None)  # every answer is kept
    with serve(lambda text: "[[A]]") as endpoint:
        results = judge_models(config(judge=endpoint.url))
    judged = results.files["helpful"].judged
    assert (judged.win, judged.tie, judged.lose) == (0, PROMPTS - 1, 0)
    assert judged.order_decides_percent == 100


def test_a_model_against_itself_needs_no_judge(config: Callable[..., JudgeConfig], tiny_folder: Path) -> None:
    with serve(prefers_longer) as endpoint:
        results = judge_models(config(judge=endpoint.url, against=str(tiny_folder)))
        assert endpoint.asked == []
    judged = results.files["helpful"].judged
    assert (judged.tie, judged.identical) == (PROMPTS - 1, PROMPTS - 1)
    assert judged.order_decides_percent is None


def test_some_nonsense_is_counted_and_nothing_else_asked_again(config: Callable[..., JudgeConfig]) -> None:
    def mostly(text: str) -> str:
        return "bananas" if "Tell me of 2 things" in text else prefers_longer(text)

    with serve(mostly) as endpoint:
        results = judge_models(config(judge=endpoint.url))
    assert results.files["helpful"].judged.unjudged == 1
    assert results.files["harmless"].judged.unjudged == 0
    assert judge_models(config(judge=endpoint.url)).files == results.files


def test_an_endpoint_that_goes_away_is_gone_on_with(
    config: Callable[..., JudgeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def dies(text: str) -> str | tuple[int, str]:
        said.append(text)
        return prefers_longer(text) if len(said) <= 5 else (500, "out of memory")

    settings = {"judge": "http://127.0.0.1/v1"}
    with serve(dies) as endpoint:
        settings["judge"] = endpoint.url
        with pytest.raises(UserError, match="status 500: out of memory; the verdicts until now are kept"):
            judge_models(config(**settings))
        endpoint.asked.clear()
        endpoint.behave = prefers_longer
        monkeypatch.setattr(generate, "_answer_batch", None)  # every answer is kept
        results = judge_models(config(**settings))
        assert len(endpoint.asked) == 2 * PROMPTS - 5
    assert not any(each.judged.unjudged for each in results.files.values())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("bananas", r"not one of 12 questions got a verdict: no \[\[A\]\].*such as 'bananas'"),
        ((200, "<html>"), "not one of 12 questions got a verdict"),
        ((401, "who are you"), "status 401: no key was sent; set NO_SUCH_KEY"),
        ((404, "no model"), "no such path or model.*no model"),
        ((400, "no stub here"), "status 400: no stub here"),
    ],
)
def test_an_endpoint_that_is_of_no_use(
    config: Callable[..., JudgeConfig], tmp_path: Path, said: Any, message: str
) -> None:
    with serve(lambda text: said) as endpoint, pytest.raises(UserError, match=message) as error:
        judge_models(config(judge=endpoint.url, api_key_variable="NO_SUCH_KEY"))
    assert "\n" not in str(error.value)
    assert len(lines(tmp_path / "judged" / "answers.jsonl")) == PROMPTS
    assert not (tmp_path / "judged" / "results.json").exists()


def test_slow_or_down(config: Callable[..., JudgeConfig]) -> None:
    with serve(prefers_longer, delay=0.3) as endpoint, pytest.raises(UserError, match=r"no answer within 0\.05 s"):
        judge_models(config(judge=endpoint.url, timeout=0.05))
    with pytest.raises(UserError, match="Connection refused"):
        judge_models(config(judge=endpoint.url, timeout=0.05))


def test_a_model_judges(
    config: Callable[..., JudgeConfig], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = judge_models(config(judge=str(tiny_folder)))
    assert not any(each.judged.unjudged for each in results.files.values())
    verdicts = lines(tmp_path / "judged" / "verdicts.jsonl")
    assert len(verdicts) == 2 * PROMPTS
    for each in verdicts:
        likelihoods = {name: float(value) for name, value in (part.split() for part in each["reply"].split(", "))}
        assert each["verdict"] == max(likelihoods, key=likelihoods.get)
    monkeypatch.setattr(generate, "_answer_batch", None)
    assert judge_models(config(judge=str(tiny_folder))).files == results.files


def test_stopped_while_answering_and_gone_on_with(
    config: Callable[..., JudgeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    answer_batch = generate._answer_batch

    def counted(
        model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], *rest: Any
    ) -> Any:
        batches.append(len(questions))
        if len(batches) == 3:
            (tmp_path / "judged" / "stop").touch()
        return answer_batch(model, tokenizer, questions, *rest)

    monkeypatch.setattr(generate, "_answer_batch", counted)
    with pytest.raises(Stopped, match=r"while answering \(against\), after 4 of 6 answers"):
        judge_models(config())
    assert (tmp_path / "judged" / "stopped").exists()
    results = judge_models(config())
    assert batches == [4, 2, 4, 2]
    assert results.files["helpful"].judged is None
    assert judge_models(config(output_dir=str(tmp_path / "whole"))).files == results.files


def test_the_base_of_a_run(
    config: Callable[..., JudgeConfig], tiny_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(other_folder)
    (tmp_path / "run" / "config.yaml").write_text(f"model: {{name_or_path: {tiny_folder}}}")
    results = judge_models(config(model=str(tmp_path / "run" / "model"), against="base"))
    assert results.models["against"] == str(tiny_folder)
    with pytest.raises(UserError, match=r"against base: .* is not the model folder of a run"):
        judge_models(config(against="base"))


def test_two_ranks_give_what_one_gives(config: Callable[..., JudgeConfig], tmp_path: Path) -> None:
    with serve(prefers_longer) as endpoint:
        alone = judge_models(config(judge=endpoint.url, output_dir=str(tmp_path / "alone")))
        two = config(judge=endpoint.url, deepspeed="ds_configs/zero3.json")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        done = subprocess.run(
            [*launcher, "scripts/judge.py", *arguments(two)],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert len(endpoint.asked) == 4 * PROMPTS
    results = json.loads((tmp_path / "judged" / "results.json").read_text())
    assert results["world_size"] == 2
    assert results["files"] == json.loads(to_text(alone))["files"]


def arguments(settings: JudgeConfig) -> list[str]:
    """Returns settings as arguments of a command line."""
    given = {name: value for name, value in vars(settings).items() if value is not None}
    texts = {name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in given.items()}
    return [part for name, text in texts.items() for part in (f"--{name}", text)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "no/such/model"}, "no/such/model: "),
        ({"judge": "no/such/judge"}, "no/such/judge: "),
        ({"prompts": ("nothing.jsonl",), "criteria": ("helpfulness",)}, "nothing.jsonl: No such file"),
        ({"criteria": ("kindness",)}, 'unknown criterion "kindness"'),
        ({"max_new_tokens": 510}, r"helpful.jsonl line 1: \d+ tokens and 510 of an answer, .* knows 512 positions"),
        ({"max_new_tokens": 0}, "--max_new_tokens is 0; it must be at least 1"),
        ({"batch_size": "many"}, "--batch_size: .*found 'many'"),
        ({"deepspeed": "nothing.json"}, "nothing.json: No such file"),
        ({"output_dir": str(REPOSITORY / "tests")}, "holds files that are not a comparison"),
        ({"judges": "x"}, "unrecognized arguments: --judges"),
    ],
)
def test_bad_input(
    config: Callable[..., JudgeConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    texts = arguments(config())
    for name, value in changes.items():
        texts += [f"--{name}", ",".join(value) if isinstance(value, tuple) else str(value)]
    monkeypatch.setattr(sys, "argv", ["judge.py", *texts])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPOSITORY / "scripts" / "judge.py"), run_name="__main__")
    assert stop.value.code == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line
    assert not (tmp_path / "judged").exists()
