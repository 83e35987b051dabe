"""Every command in README, docs/, examples/ and the docstrings and comments of files is accepted by its parser."""

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from codyra_llm.cli.__main__ import COMMANDS
from codyra_llm.config import config_fields
from tests.conftest import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "codyra_llm" / "cli").glob("*.py")),
    *sorted((REPOSITORY / "configs").glob("*.yaml")),
    *sorted((REPOSITORY / "examples").glob("*.*")),
    *sorted((REPOSITORY / "scripts" / "slurm").glob("*.sbatch")),
    REPOSITORY / "Dockerfile",
]
SCRIPTS = {"train_trace": "train", "prepare_trace": "prepare", "prepare_clip": "prepare"}
STARTS = re.compile(
    r"\bcodyra (?P<command>[a-z]+)(?P<own> .*|$)|scripts/(?P<script>\w+)\.py(?P<rest> .*|$)"
    r"|\$\(codyra path (?P<path>\w+)\)(?P<after> .*|$)|scripts/slurm/(?P<batch>\w+)\.sbatch(?P<options> .*|$)"
)


def shell_lines(page: Path) -> Iterator[str]:
    """Yields shell lines without comments: indented ones in a page or docstring, `#   ...` in a comment."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    text = re.sub(r"\\\\?\n\s*#?\s*", " ", text)  # continued lines
    mark = "    " if page.suffix in (".md", ".py") else "" if page.suffix == ".sh" else "#   "
    for line in text.splitlines():
        if line.startswith(mark) and not (page.suffix == ".sh" and line.startswith("#")):
            yield re.sub(r"\s#.*", "", line.lstrip("# "))


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields (command of codyra, its arguments) for every line that starts one, with any launcher."""
    for line in shell_lines(page):
        for part in re.split(r"&&|\||;|>|\)$", line):
            found = STARTS.search(part)
            if not found or "`" in part:
                continue
            name = found["command"] or found["script"] or found["path"] or found["batch"]
            rest = found["own"] or found["rest"] or found["after"] or found["options"] or ""
            words = [word for word in shlex.split(rest) if word not in ("...", "$@")]
            if name == "launch":
                name, *words = words[words.index("--") + 1 :]
            if name == "path" or name.startswith("compare"):
                continue
            yield SCRIPTS.get(name, name), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page(page: Path) -> None:
    for name, words in commands(page):
        assert name in COMMANDS, f"{page.name}: codyra {name}"
        parser = import_module(f"codyra_llm.cli.{name}").make_parser()
        try:
            parser.parse_args(words)
        except Exception as error:
            pytest.fail(f"{page.name}: {name} {' '.join(words)}: {error}")


def test_the_pages_have_commands() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 60


def test_every_setting_that_a_page_names_exists() -> None:
    sections = {name.split(".")[0] for name, _ in config_fields() if "." in name}
    known = {name for name, _ in config_fields()}
    for page in PAGES:
        if page.suffix == ".md":
            for section, name in re.findall(r"`-{0,2}([a-z]+)\.([a-z_]+)\b", page.read_text()):
                is_module = (REPOSITORY / "codyra_llm" / section / f"{name}.py").exists()
                is_setting = (
                    section in sections and name not in ("py", "json", "log", "png", "svg", "sbatch") and not is_module
                )
                assert not is_setting or f"{section}.{name}" in known, f"{page.name}: {section}.{name}"


def test_every_file_that_a_page_names_exists() -> None:
    for page in PAGES:
        text = page.read_text()
        for path in re.findall(
            r"(?<![\w/.-])(?:configs|ds_configs|scripts|docs|tasks|examples|tests)/[\w./-]+\.\w+", text
        ):
            assert "NAME" in path or (REPOSITORY / path).exists(), f"{page.name}: {path}"
        if page.suffix == ".md":
            for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = (REPOSITORY / "docs" / "README.md").read_text()
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in listed, page.name


def test_the_manifest_for_kubernetes() -> None:
    """Checks the fields of a PyTorchJob that the training operator needs, and the command."""
    job = yaml.safe_load((REPOSITORY / "examples" / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert set(job["spec"]) == {"nprocPerNode", "runPolicy", "pytorchReplicaSpecs"}
    assert set(job["spec"]["pytorchReplicaSpecs"]) == {"Master", "Worker"}
    for machine in job["spec"]["pytorchReplicaSpecs"].values():
        assert set(machine) == {"replicas", "restartPolicy", "template"}
        assert machine["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        pod = machine["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == "pytorch", "the operator sets the environment of this container alone"
        assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == job["spec"]["nprocPerNode"]
        assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
        environment = {each["name"]: each["value"] for each in container["env"]}
        assert all(isinstance(value, str) for value in environment.values()), "Kubernetes takes no numbers here"
        assert 30 < int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
        (line,) = container["command"][2:]
        found = STARTS.search(line)
        assert found
        import_module("codyra_llm.cli.train").make_parser().parse_args(shlex.split(found["after"]))


def test_the_image_is_made_of_what_is_there() -> None:
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    copied = [source for line in lines if line.startswith("COPY") for source in line.split()[1:-1]]
    assert all((REPOSITORY / source).exists() for source in copied)
    assert {"codyra_llm", "tasks", "configs", "ds_configs", "scripts", "pyproject.toml", "setup.py"} <= set(copied)
    torch = next(
        line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line.startswith("torch==")
    )
    assert any(torch in line for line in lines)
