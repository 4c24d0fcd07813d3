"""What a user sees while a fit runs: on stderr, in a terminal or notebook only."""

import pytest

from edm_tutorial.sbi import early_stopping
from edm_tutorial.sbi.early_stopping import FitState, History, Progress


def fit(*steps, held_out=2.0):
    """A fit after these steps; the prior alone has 5 nats."""
    history = History(steps, (1.0,) * len(steps), (held_out,) * len(steps), 4.0, 5.0)
    return FitState(None, None, history, 0)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets by hand."""
    now = [100.0]
    monkeypatch.setattr(early_stopping.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(early_stopping, "watched", lambda: True)
    return now


def test_without_tqdm_a_line_says_steps_loss_and_time_left(clock, capsys, monkeypatch):
    """From the second look on: 3 of 10 steps done, each of the last two took 5 s."""
    monkeypatch.setattr(early_stopping, "find_spec", lambda name: None)
    progress = Progress(10, shown=True)
    clock[0] = 130.0  # compilation
    progress.show(fit(1))
    assert capsys.readouterr().err.strip() == "step 1 of 10, held out 2.000 nats, 0 s left"
    clock[0] = 135.0
    progress.show(fit(1, 2))  # one step in 5 s, eight to go
    assert capsys.readouterr().err.strip() == "step 2 of 10, held out 2.000 nats, 40 s left"
    clock[0] = 140.0
    progress.show(fit(1, 2, 3, held_out=1.5))
    assert capsys.readouterr().err.strip() == "step 3 of 10, held out 1.500 nats, 35 s left"
    progress.close(fit(1, 2, 3, held_out=1.5))
    assert capsys.readouterr().err.strip() == "3 steps, 3.50 nats over the prior"


def test_with_tqdm_a_bar_counts_the_steps(clock, capsys):
    progress = Progress(10, shown=True)
    assert progress.bar is not None
    progress.show(fit(4))
    assert progress.bar.n == 4
    progress.show(fit(4, 8))
    assert progress.bar.n == 8 and "2.000 nats" in str(progress.bar.postfix)
    progress.close(fit(4, 8))
    assert capsys.readouterr().err.rstrip().endswith("8 steps, 3.00 nats over the prior")


def test_nothing_is_shown_where_nobody_looks(capsys, monkeypatch):
    progress = Progress(10, shown=True)  # pytest's stderr is no terminal
    progress.show(fit(4))
    progress.close(fit(4))
    monkeypatch.setattr(early_stopping, "watched", lambda: True)
    quiet = Progress(10, shown=False)
    quiet.show(fit(4))
    quiet.close(fit(4))
    assert capsys.readouterr().err == ""
