"""Publishing a model to a fake hub: it receives the files of the folder, and a refusal is one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

from codyra_llm import run
from codyra_llm.models.hub import stated_card
from codyra_llm.models.source import Source, open_source
from tests.e2e.test_run import tiny_config
from tests.hub import Hub, serve


def push(hub: Hub, *arguments: object) -> "subprocess.CompletedProcess[str]":
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_token", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "codyra_llm.cli", "push", *map(str, arguments)]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=300)


def test_a_finished_model_is_published_with_its_card(tiny_folder: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: llama2\nlanguage: [en, de]\ntags: [x]\n---\n# A model\n")
    run(tiny_config(base, tmp_path / "run", order=["FOMC"]))
    model = tmp_path / "run" / "model"
    with serve() as hub:
        ended = push(hub, model, "me/x", "--private")
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.split()[-1] == f"{hub.url}/me/x/commit/{'a' * 40}"
        assert [(each["name"], each["visibility"]) for each in hub.created] == [("x", "private")]
        assert hub.files == {path.name: path.read_bytes() for path in model.iterdir()}
        front = yaml.safe_load(hub.files["README.md"].decode().split("---")[1])
        assert (front["license"], front["language"], front["base_model"]) == ("llama2", ["en", "de"], "base")

        hub.refused = True
        ended = push(hub, model, "other/x")
        assert ended.returncode == 2
        (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error")]
        assert line.startswith("error: other/x: cannot be pushed: ")
        assert "403" in line

        ended = push(hub, tmp_path / "run", "me/x")
        assert "holds no saved model (config.json and *.safetensors); did you mean" in ended.stderr


@pytest.mark.parametrize("name", ["models--meta-llama--Llama-3.2-1B/snapshots/0123", "plain"])
def test_a_folder_of_the_hub_cache_is_known_by_its_id(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    folder = shutil.copytree(tiny_folder, tmp_path / name)
    found = stated_card(open_source(str(folder)))
    assert found == ({"base_model": "meta-llama/Llama-3.2-1B"} if "--" in name else {})


def test_what_the_packaged_model_is_stands_in_its_card(tiny_folder: Path) -> None:
    source = Source("smollm2-135m-instruct", str(tiny_folder), AutoConfig.from_pretrained(tiny_folder))
    assert stated_card(source)["license"] == "apache-2.0"
