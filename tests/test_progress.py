"""Bars on terminals, lines elsewhere, silence where disabled."""

import io

import pytest

from ood_jax import progress
from ood_jax.progress import Progress, duration, format_value


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: clock[0] is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_line_has_count_rate_time_left_and_values(clock, capsys):
    bar = Progress(5000, unit="images", label="train", every=0.0)
    clock[0] += 0.5
    bar.update(1000, loss=3.2149, step=12)
    assert capsys.readouterr().err == (
        "train: 1,000/5,000 images, 2,000 images/s, 2 s left, loss 3.21, step 12\n"
    )


def test_lines_come_at_most_every_so_often_and_at_the_end(clock, capsys):
    with Progress(100, unit="steps", label="a", every=30.0) as bar:
        for _ in range(100):
            clock[0] += 1.0
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"a: {n}/100 steps" for n in (30, 60, 90, 100)
    ]
    assert lines[-1].endswith("took 1 min 40 s")


def test_last_line_is_not_said_twice(clock, capsys):
    with Progress(2, unit="steps", label="a", every=1.0) as bar:
        clock[0] += 2.0
        bar.update(2)
        bar.close()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_rate_of_a_resumed_run_counts_new_work_only(clock, capsys):
    bar = Progress(1000, unit="steps", label="a", start=900, every=0.0)
    clock[0] += 5.0
    bar.update(50)
    assert "950/1,000 steps, 10 steps/s, 5 s left" in capsys.readouterr().err


def test_disabled_says_nothing(clock, capsys):
    with Progress(2, unit="steps", label="a", every=0.0, enabled=False) as bar:
        clock[0] += 60.0
        bar.update(2, loss=1.0)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", screen)
    with Progress(10, unit="steps", label="train", start=4) as bar:
        bar.update(6, loss=0.5)
    text = screen.getvalue()
    assert "\r" in text and "train" in text and "10/10" in text and "loss=0.5" in text


def test_an_error_inside_still_prints_where_it_stood(clock, capsys):
    with (
        pytest.raises(RuntimeError),
        Progress(10, unit="steps", label="a") as bar,
    ):
        clock[0] += 1.0
        bar.update(3)
        raise RuntimeError
    assert "3/10 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (72, "1 min 12 s"),
        (7380, "2 h 3 min"),
        (3599.6, "1 h 0 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.2149, "3.21"),
        (12345.6, "12,346"),
        (1e-4, "0.0001"),
        (7, "7"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ("x", "x"),
    ],
)
def test_format_value(value, text):
    assert format_value(value) == text
