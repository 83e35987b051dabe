"""Scripts as they are called."""

import runpy
import sys
from collections.abc import Callable

import pytest

from codyra_llm.distributed.ranks import start
from tests.conftest import REPOSITORY

Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a script in this process and returns what it printed."""

    def act(script: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(REPOSITORY / "scripts" / script), run_name="__main__")
        return capsys.readouterr().out

    start()  # a command ends with all ranks; here there is one
    return act


@pytest.fixture
def refused(command: Command, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a script that must end with one line and status 2; returns the line."""

    def act(script: str, *arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            command(script, *arguments)
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return act
