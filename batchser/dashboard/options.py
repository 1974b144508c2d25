"""What a dashboard shows, and to whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import flask

from batchser.pages.render import page
from batchser.results import Results, open_results
from batchser.results.opening import DAY
from batchser.settings import Headerless, LimitSettings


@dataclass(frozen=True, slots=True)
class Options:
    """What a dashboard shows, and to whom.

    ``listen_limits`` : what originals may ask of the machine and where they may lie; None: they are not opened
    ``headerless`` : how originals and uploads without a header are read
    ``speaker_column`` : which of the manifest's columns names the caller, for labels; None: each call is a speaker
    ``hosts`` : the names under which it may be called
    """

    out: str
    segments: str | None
    zone: ZoneInfo
    search: tuple[Path, ...]
    listen_limits: LimitSettings | None
    headerless: Headerless
    speaker_column: str | None
    hosts: tuple[str, ...]
    most_upload_bytes: int


def open_now(options: Options) -> Results:
    """Open the results as they are at this moment.

    Raises
    ------
    ConfigError : there are none, or they cannot be read
    """
    return open_results(options.out, options.segments)


def call_address(row: Mapping[str, Any], results: Results) -> str:
    """Return the address of a call's page; of a dataset with its day, so that no other has to be looked through."""
    asked = {"call_id": row["call_id"]}
    if results.by_day:
        asked["day"] = row[DAY]
    if row.get("channel") is not None:
        asked["channel"] = str(int(row["channel"]))
    return f"/call?{urlencode(asked)}"


def show(template: str, **values: Any) -> str:
    """Fill a page of the dashboard."""
    return page(f"dashboard/{template}", here=flask.request.path, **values)
