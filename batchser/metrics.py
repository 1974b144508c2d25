"""``--metrics FILE``: what a run did as Prometheus text, for node_exporter's textfile collector.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batchser.records import STATUSES
from batchser.sink.files import placing

if TYPE_CHECKING:
    from batchser.runner import Progress, Report

_LAST_SUCCESS: Final = "batchser_last_success_timestamp_seconds"


class Meter:
    """A Progress that hands all on to another, and sums up where the workers' seconds went."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self.stages: dict[str, float] = {}

    def begin(self, run_id: str) -> None:
        """See Progress."""
        self._shown.begin(run_id)

    def say(self, line: str) -> None:
        """See Progress."""
        self._shown.say(line)

    def start(self, total_s: float, recordings: int) -> None:
        """See Progress."""
        self._shown.start(total_s, recordings)

    def advance(self, seconds: float, recordings: int, stages: Mapping[str, float]) -> None:
        """See Progress."""
        for stage, spent in stages.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + spent
        self._shown.advance(seconds, recordings, stages)


def write_metrics(path: Path, exit_code: int, report: Report | None, stages: Mapping[str, float]) -> None:
    """Replace the file: all metrics of a run that came to its end, or that one did not.

    The time of the last success stays as it was where a run broke off, so that an alert can go by its age.

    Raises
    ------
    SinkError : the file cannot be written
    """
    last_success = time.time() if report is not None else _last_success(path)
    text = "\n".join(_lines(exit_code, report, stages, last_success)) + "\n"
    with placing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _last_success(path: Path) -> float | None:
    try:
        found = re.search(rf"^{_LAST_SUCCESS} (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        return float(found[1]) if found else None
    except (OSError, ValueError):
        return None


def _lines(
    exit_code: int, report: Report | None, stages: Mapping[str, float], last_success: float | None
) -> Iterator[str]:
    yield from _gauge("batchser_exit_code", "Exit code of the last run.", {"": exit_code})
    if last_success is not None:
        yield from _gauge(_LAST_SUCCESS, "When a run last came to its end.", {"": last_success})
    if report is None:
        return
    statuses = {f'{{status="{status}"}}': report.by_status.get(status, 0) for status in STATUSES}
    yield from _gauge("batchser_recordings", "Recordings of the last run by status.", statuses)
    for name, text, value in (
        ("batchser_recordings_reused", "Recordings that were done before.", report.recordings_reused),
        ("batchser_audio_seconds", "Seconds of audio in the last run.", report.audio_s),
        ("batchser_scored_windows", "Windows that were scored.", report.scored_windows),
        ("batchser_duration_seconds", "Seconds that the last run took.", report.seconds),
    ):
        yield from _gauge(name, text, {"": value})
    spent = {f'{{stage="{stage}"}}': round(seconds, 4) for stage, seconds in sorted(stages.items())}
    yield from _gauge("batchser_stage_seconds", "Workers' seconds in each stage of the last run.", spent)


def _gauge(name: str, text: str, values: Mapping[str, float]) -> Iterator[str]:
    if values:
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} gauge"
        yield from (f"{name}{labels} {value}" for labels, value in values.items())
