"""Fixtures that run scripts with command lines."""

import functools
import runpy
import sys
from collections.abc import Callable, Iterator

import pytest

from codyra_llm.distributed.ranks import start
from codyra_llm.report.page import run as page
from codyra_llm.report.pictures import PICTURES, write_pictures
from tests.conftest import REPOSITORY

Command = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def one_picture(request: pytest.FixtureRequest) -> Iterator[None]:
    """Limits a run's page to one picture, except with the mark `pictures`: drawing all takes as long as a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.node.get_closest_marker("pictures"):
            patch.setattr(page, "write_pictures", functools.partial(write_pictures, pictures=PICTURES[:1]))
        yield


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Function that runs a script in this process and returns its standard output."""

    def act(script: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(REPOSITORY / "scripts" / script), run_name="__main__")
        return capsys.readouterr().out

    start()  # at its end, a command waits for all ranks; here there is one
    return act


@pytest.fixture
def refused(command: Command, capsys: pytest.CaptureFixture[str]) -> Command:
    """Function that runs a script that must end with one line and status 2; returns the line."""

    def act(script: str, *arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            command(script, *arguments)
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return act
