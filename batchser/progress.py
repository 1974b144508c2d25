"""Progress for people: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import click

_LINE_EVERY_S: Final = 30.0


class ClickProgress:
    """Progress of a run on stderr: a bar where that is a terminal, else a line every half minute."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._total_s = self._done_s = 0.0
        self._total_recordings = self._recordings = 0
        self._started = self._last_line = time.monotonic()

    def begin(self, run_id: str) -> None:
        """Pass over the run's id, which people do not need."""

    def say(self, line: str) -> None:
        """Print one line."""
        if not self._quiet:
            click.echo(line, err=True)

    def start(self, total_s: float, recordings: int) -> None:
        """Begin with so much to score."""
        self._total_s, self._total_recordings = total_s, recordings
        self._started = self._last_line = time.monotonic()
        self.say(f"scoring {total_s / 3600:.2f} hours of audio")
        if not self._quiet and sys.stderr.isatty():
            self._bar = click.progressbar(length=max(1, round(total_s)), label="scoring", file=sys.stderr)
            self._bar.render_progress()

    def advance(self, seconds: float, recordings: int, stages: Mapping[str, float] | None = None) -> None:
        """Count ``seconds`` of audio and ``recordings`` as done."""
        self._done_s += seconds
        self._recordings += recordings
        finished = self._recordings == self._total_recordings  # sums of seconds do not meet exactly
        if self._bar is not None:
            self._bar.update(round(self._done_s) - self._bar.pos)
            if finished:
                self._bar.render_finish()
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S or finished:
            self._last_line = time.monotonic()
            self.say(self._line())

    def _line(self) -> str:
        elapsed_s = time.monotonic() - self._started
        speed = self._done_s / max(elapsed_s, 1e-9)
        left_s = (self._total_s - self._done_s) / speed if speed else 0.0
        share = self._done_s / self._total_s if self._total_s else 1.0
        return (
            f"{share:4.0%} {self._recordings} recordings, {self._done_s / 3600:.2f} h of audio, "
            f"{speed:.0f} x real time, {left_s / 60:.1f} min left"
        )


def timed(*, quiet: bool) -> Callable[[str], None]:
    """Make a printer of lines that begin with the minutes since it was made."""
    started = time.monotonic()

    def tell(line: str) -> None:
        if not quiet:
            click.echo(f"{(time.monotonic() - started) / 60:6.1f} min  {line}", err=True)

    return tell
