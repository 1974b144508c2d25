"""Progress: a bar on a terminal, plain lines in a log, nothing when quiet."""

from __future__ import annotations

import io
import re
import sys

import pytest

from batchser import progress
from batchser.progress import ClickProgress, timed


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_log_gets_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    shown = ClickProgress(quiet=False)
    shown.say("reading 3 headers")
    shown.start(7200.0, 3)
    shown.advance(1800.0, 1)
    shown.advance(5400.0, 2)
    output, errors = capsys.readouterr()
    assert not output
    lines = errors.splitlines()
    assert lines[:2] == ["reading 3 headers", "scoring 2.00 hours of audio"]
    assert re.fullmatch(r" 25% 1 recordings, 0\.50 h of audio, \d+ x real time, \d+\.\d min left", lines[2])
    assert re.fullmatch(r"100% 3 recordings, 2\.00 h of audio, \d+ x real time, 0\.0 min left", lines[3])
    assert len(lines) == 4


def test_a_log_is_not_flooded_and_ends_once(capsys: pytest.CaptureFixture[str]) -> None:
    shown = ClickProgress(quiet=False)
    shown.start(1.0, 12)
    for _ in range(10):
        shown.advance(0.1, 1)  # these do not sum to 1.0
    shown.advance(0.0, 1)  # nor do broken recordings at the end make another end
    shown.advance(0.0, 1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("100% 12 recordings")


def test_recordings_without_a_known_length_end_too(capsys: pytest.CaptureFixture[str]) -> None:
    shown = ClickProgress(quiet=False)
    shown.start(0.0, 2)
    shown.advance(0.0, 1)
    shown.advance(0.0, 1)
    assert [line[:19] for line in capsys.readouterr().err.splitlines()[1:]] == ["100% 2 recordings, "]


def test_a_terminal_gets_a_bar_that_reaches_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = ClickProgress(quiet=False)
    shown.start(10.0, 25)
    for _ in range(25):
        shown.advance(0.4, 1)  # each rounds to nothing by itself
    text = terminal.getvalue()
    assert "scoring  [" in text
    assert "100%" in text
    assert text.count("\n") == 2  # after the first line, and after the bar


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = ClickProgress(quiet=True)
    shown.say("a line")
    shown.start(1.0, 1)
    shown.advance(1.0, 1)
    timed(quiet=True)("another")
    assert capsys.readouterr() == ("", "")


def test_timed_lines_begin_with_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    timed(quiet=False)("fold 1 of 5")
    assert capsys.readouterr().err == "   0.0 min  fold 1 of 5\n"
