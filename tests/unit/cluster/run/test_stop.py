"""What signals do, moment by moment."""

import os
import signal

import pytest
from branchgrpo.cluster.run.stop import Stopped, StopRequest


def ask(signum: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), signum)


def test_the_first_signal_is_noted_and_the_second_ends_at_once() -> None:
    answers: list[str] = []
    with pytest.raises(Stopped) as ended, StopRequest().listening() as stop:
        stop.asked = lambda: answers.append("soon")
        ask()
        assert (stop.signum, answers) == (signal.SIGTERM, ["soon"])
        ask(signal.SIGINT)
        pytest.fail("it goes on")
    assert ended.value.signum == signal.SIGTERM


def test_where_nothing_is_lost_the_first_signal_ends() -> None:
    cleaned = False
    with pytest.raises(Stopped) as ended, StopRequest("at once").listening() as stop:
        try:
            ask(signal.SIGINT)
        finally:
            with stop.during("ignored"):
                ask()
                cleaned = True
    assert (ended.value.signum, cleaned) == (signal.SIGINT, True)


def test_signals_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGHUP)
    with StopRequest().listening(deaf=(signal.SIGHUP,)) as stop:
        ask(signal.SIGHUP)
        assert stop.signum is None
    assert signal.getsignal(signal.SIGHUP) == before
