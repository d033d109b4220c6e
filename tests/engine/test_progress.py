import io
import logging
import sys

import pytest
from detectron2.engine import TrainerBase

from glipv2_d2.engine.progress import ElapsedTime, ProgressBar, quiet_terminal, show_progress


class Steps(TrainerBase):
    """Three steps with a loss, and a result after the second."""

    def run_step(self):
        self.storage.put_scalar("total_loss", 3.0 - self.iter)
        if self.iter == 1:
            self.storage.put_scalar("bbox/AP", 12.5)
            self.storage.put_scalar("bbox/AP50", float("nan"))


@pytest.fixture
def console():
    """A handler as the one that detectron2 writes to the console with."""
    handler = logging.StreamHandler(sys.stdout)
    loggers = [logging.getLogger(name) for name in ("detectron2", "glipv2_d2")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)


def shows(console, name, level=logging.INFO):
    return bool(console.filter(logging.makeLogRecord({"name": name, "levelno": level})))


def test_terminal_gets_a_bar_in_place_of_lines(monkeypatch, capsys, console):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    steps = Steps()
    quiet_terminal()
    show_progress(steps)
    steps.train(0, 3)
    shown = capsys.readouterr().err
    assert "training" in shown and "3/3" in shown and "loss=1, AP=12.5" in shown and "AP50" not in shown
    assert not shows(console, "detectron2.utils.events") and shows(console, "glipv2_d2.engine.runs")


def test_a_line_stands_above_the_bar(monkeypatch, console):
    """Both are written to one terminal; before the line the bar is cleared, and drawn again behind it."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    logger = logging.getLogger("glipv2_d2.engine.progress")
    monkeypatch.setattr(logger, "level", logging.INFO)
    steps = Steps()
    quiet_terminal()
    show_progress(steps)
    steps.train(0, 3)
    before, line, after = terminal.getvalue().partition("after 2 of 3 updates: AP 12.5, AP50 nan\n")
    assert line and before.endswith("\r") and "training:" in before and after.startswith("\rtraining:")


def test_file_gets_lines_of_losses_and_one_for_each_evaluation(monkeypatch, capsys, caplog, console):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    steps = Steps()
    quiet_terminal()
    show_progress(steps)
    with caplog.at_level(logging.INFO):
        steps.train(0, 3)
    assert "training:" not in capsys.readouterr().err
    assert [record.message for record in caplog.records if "updates: AP" in record.message] == [
        "after 2 of 3 updates: AP 12.5, AP50 nan"
    ]
    assert shows(console, "detectron2.utils.events") and shows(console, "glipv2_d2.engine.progress")
    for name in ("fvcore.common.checkpoint", "detectron2.data.build", "glipv2_d2.engine.plateau"):
        assert not shows(console, name) and shows(console, name, logging.WARNING)


def test_bar_of_a_resumed_run_starts_where_it_had_been(capsys):
    steps = Steps()
    steps.register_hooks([ProgressBar()])
    steps.train(2, 3)
    assert "2/3" in capsys.readouterr().err


def test_time_before_a_resume_counts(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("glipv2_d2.engine.progress.time.time", lambda: now)
    first = ElapsedTime(begin=940.0)
    saved = first.state_dict()
    now = 5000.0
    resumed = ElapsedTime(begin=4880.0)
    assert resumed.minutes == 2.0
    resumed.load_state_dict(saved)
    assert (saved, resumed.minutes) == ({"minutes": 1.0}, 3.0)
