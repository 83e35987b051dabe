"""Requests to stop a process."""

import os
import signal
import threading
from pathlib import Path

import pytest

from codyra_llm.distributed.ranks import start
from codyra_llm.distributed.stop import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_handlers_are_put_back(number: int) -> None:
    before = signal.getsignal(number)
    with StopRequest(start(), None) as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        assert stop.agreed() and stop.agreed()
    assert signal.getsignal(number) == before


def test_a_file_asks_as_well(tmp_path: Path) -> None:
    with StopRequest(start(), tmp_path / "stop") as stop:
        assert not stop.agreed()
        (tmp_path / "stop").touch()
        assert stop.agreed()


def test_what_asks_the_outer_of_two_asks_the_inner_one(tmp_path: Path) -> None:
    with StopRequest(start(), tmp_path / "stop") as outer:
        with StopRequest(start(), None) as inner:
            (tmp_path / "stop").touch()
            assert inner.agreed()
            (tmp_path / "stop").unlink()
            assert not inner.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        with StopRequest(start(), None) as inner:
            assert inner.agreed(), "the signal came before the inner one began"
        assert outer.agreed()


def test_a_signal_within_the_inner_of_two_asks_both() -> None:
    with StopRequest(start(), None) as outer:
        with StopRequest(start(), None) as inner:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert inner.agreed()
        assert outer.agreed()


def test_a_second_ctrl_c_ends_at_once_though_the_first_came_before_the_inner_of_two() -> None:
    with StopRequest(start(), None):
        os.kill(os.getpid(), signal.SIGINT)
        with StopRequest(start(), None), pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_in_another_thread_no_handler_is_set() -> None:
    world, before, found = start(), signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with StopRequest(world, None) as stop:
            found.append((signal.getsignal(signal.SIGTERM), stop.agreed()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, False)]
