"""What goes to stderr: sentences for people, or with ``--log-format json`` one JSON object a line, each with its run.

Neither holds audio nor what was said in it; of a recording they name its call_id.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

FORMATS: Final = ("text", "json")
_TEXT: Final = "%(asctime)s %(levelname)s %(message)s"
_LOG: Final = logging.getLogger("batchser.run")
_log_format, _run_id = "text", ""


class _ToStderr(logging.Handler):
    """Writes to what stderr is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


_HANDLER: Final = _ToStderr()


class JsonFormatter(logging.Formatter):
    """Log records as JSON objects: time (UTC), level, run_id, message, and what an event has besides."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "run_id": _run_id,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def configure(log_format: str, run_id: str = "") -> None:
    """Log to stderr from now on, in one of FORMATS."""
    global _log_format, _run_id
    _log_format, _run_id = log_format, run_id
    _HANDLER.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(_TEXT))
    logging.root.addHandler(_HANDLER)  # a second time does nothing
    logging.root.setLevel(logging.WARNING)
    _LOG.setLevel(logging.INFO if log_format == "json" else logging.WARNING)


def current() -> tuple[str, str]:
    """Return the format and the run, so that another process can be told."""
    return _log_format, _run_id


def tell(message: str, fields: Mapping[str, Any] | None = None, level: int = logging.INFO) -> None:
    """Log an event of the run with its fields; where people read, progress tells them instead."""
    _LOG.log(level, message, extra={"fields": dict(fields or {})})


class JsonProgress:
    """Progress of a run as JSON lines, one a shard."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._done_s, self._recordings, self._total = 0.0, 0, 0

    def begin(self, run_id: str) -> None:
        """Name the run in every line from now on."""
        configure("json", run_id)

    def say(self, line: str) -> None:
        """Log what happens now."""
        self._tell(line, {})

    def start(self, total_s: float, recordings: int) -> None:
        """Begin with so much to score."""
        self._total = recordings
        self._tell("scoring", {"event": "start", "audio_s": round(total_s, 3), "recordings": recordings})

    def advance(self, seconds: float, recordings: int, stages: Mapping[str, float]) -> None:
        """Log a finished shard."""
        self._done_s += seconds
        self._recordings += recordings
        self._tell(
            f"{self._recordings} of {self._total} recordings are done",
            {
                "event": "shard",
                "recordings": recordings,
                "audio_s": round(seconds, 3),
                "recordings_done": self._recordings,
                "audio_done_s": round(self._done_s, 3),
                "seconds": {stage: round(spent, 4) for stage, spent in stages.items()},
            },
        )

    def _tell(self, message: str, fields: Mapping[str, Any]) -> None:
        if not self._quiet:
            tell(message, fields)
