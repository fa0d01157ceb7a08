"""Signals while a run saves: none tears the save, and a second Ctrl-C does not wait for it."""

import os
import signal
from types import SimpleNamespace

import pytest

from ood_jax import loop

TERM, INT = signal.SIGTERM, signal.SIGINT


def _send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("numbers", [(TERM,), (TERM, TERM, TERM), (TERM, INT), (INT, TERM), (INT,)])
def test_what_is_under_way_goes_on(numbers):
    with loop._caught_signals() as caught:
        _send(*numbers)
        done = True
    assert done and caught == list(numbers)


def test_a_second_sigint_does_not_wait():
    with pytest.raises(KeyboardInterrupt), loop._caught_signals():
        _send(INT, TERM)
        _send(INT)


class _Saving:
    """Checkpoints whose last save meets signals."""

    def __init__(self, numbers):
        self.numbers, self.done = numbers, []

    def save(self, state, config):
        self.done.append("begun")

    def close(self):
        _send(*self.numbers)
        self.done.append("saved")


@pytest.fixture
def train(monkeypatch, tmp_path):
    """`loop.train` of a run whose 3 steps are done: (saved what meets `numbers`, its handlers)."""
    run = SimpleNamespace(config=SimpleNamespace(train=SimpleNamespace(steps=3)))

    def act(*numbers):
        saving = _Saving(numbers)
        monkeypatch.setattr(loop, "open_workdir", lambda *_: saving)
        monkeypatch.setattr(loop, "_start", lambda *_: ("state", 3))
        before = [signal.getsignal(number) for number in (TERM, INT)]
        try:
            return loop.train(run, str(tmp_path)), saving.done
        except (loop.Interrupted, KeyboardInterrupt) as stop:
            return stop, saving.done
        finally:
            assert [signal.getsignal(number) for number in (TERM, INT)] == before

    return act


@pytest.mark.parametrize(("numbers", "code"), [((TERM,), 143), ((TERM, TERM), 143), ((INT,), 130)])
def test_a_signal_in_the_last_save_is_heard_when_it_is_done(train, numbers, code):
    stop, done = train(*numbers)
    assert done == ["begun", "saved"]
    assert stop.code == code and "stopped after step 3" in str(stop)


def test_without_a_signal_nothing_is_said(train):
    assert train() == ("state", ["begun", "saved"])


def test_two_sigints_end_the_last_save(train):
    stop, done = train(INT, INT)
    assert isinstance(stop, KeyboardInterrupt) and done == ["begun"]
