"""One recording, whether it stands in the results or was brought just now: its page, its figure, its sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final
from urllib.parse import urlencode

import flask
import pandas as pd
import pyarrow.dataset as ds

from batchser.dashboard.labels import Labels
from batchser.dashboard.options import Options, call_address, open_now, show
from batchser.dashboard.reviews import SAID
from batchser.dashboard.uploads import UPLOAD_LIMITS, Upload, Uploads
from batchser.errors import AudioError
from batchser.listening import Span, cut, draw, encoded, original
from batchser.pages import charts
from batchser.pages.report import Chart
from batchser.pipeline import parse_roles
from batchser.results import Results
from batchser.results.opening import DAY, records
from batchser.settings import Headerless, LimitSettings
from batchser.tables import calls_schema

_LONGEST_SOUND_S: Final = 120.0
_CONTEXT_S: Final = 0.5
_PAGE_WINDOWS: Final = 200
#: Columns of calls that are the recording's, whatever the channel.
_OF_THE_CALL: Final = frozenset(
    {"call_id", "path", "status", "error", "truncated", "started_at", "duration_s", "model", "scored_at"}
)
_NOT_OPENED: Final = "recordings are not opened: start the dashboard with --root DIR to hear and see those below it"


@dataclass(frozen=True, slots=True)
class Shown:
    """A channel of a recording: its row of calls, all windows of the recording, the manifest's ``own`` columns.

    ``limits`` is None where the recording must not be opened; ``address`` is that of the recording's page.
    """

    path: str
    row: dict[str, Any]
    windows: pd.DataFrame
    channel: int
    labels: tuple[str, ...]
    negative_labels: tuple[str, ...]
    limits: LimitSettings | None
    address: str
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scored(self) -> pd.DataFrame:
        """The channel's windows that have an emotion."""
        return self.windows[(self.windows["channel"] == self.channel) & self.windows["emotion"].notna()]

    @property
    def channels(self) -> list[tuple[int, str]]:
        """All channels with their roles."""
        return [(int(row["channel"]), row["role"]) for row in records(self.windows.drop_duplicates("channel"))]


def pages(options: Options, uploads: Uploads, labels: Labels) -> flask.Blueprint:
    """Return the routes of this module."""
    routes = flask.Blueprint("recordings", __name__)

    def found(results: Results, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return the rows of the call that is asked for; where its day is known no other day is looked through."""
        call_id, day = flask.request.args.get("call_id", ""), flask.request.args.get("day", "")
        where = ds.field("call_id") == call_id
        if results.by_day and day:
            where &= ds.field(DAY) == day
        rows = records(results.read_calls(columns, where))
        if not rows and day:  # it may have moved to another day since
            rows = records(results.read_calls(columns, ds.field("call_id") == call_id))
        if not rows:
            flask.abort(404, f"There is no call {call_id!r} in these results.")
        return rows

    def call() -> Shown:
        results = open_now(options)
        rows = found(results)
        windows = results.windows_of([rows[0]["call_id"]], [row[DAY] for row in rows] if results.by_day else ())
        channel, row = _chosen(rows, results.labels)
        address = call_address({**row, "channel": None}, results)
        known = (results.labels, results.negative_labels, options.listen_limits, address)
        return Shown(row["path"], row, windows, channel, *known, own={n: row[n] for n in results.own_columns})

    def uploaded() -> tuple[Shown, Upload]:
        upload = uploads.get(flask.request.args.get("upload", ""))
        if upload is None:
            flask.abort(404, "This recording is kept no longer; choose it once more.")
        bundle, address = uploads.bundle, f"/upload?{urlencode({'upload': upload.token})}"
        channel, row = _chosen(upload.calls, bundle.labels)
        known = (bundle.labels, bundle.negative_labels, UPLOAD_LIMITS, address)
        return Shown(str(upload.path), row, upload.windows, channel, *known), upload

    @routes.get("/call")
    def call_page() -> str:
        shown = call()
        return _page(shown, said=labels.of(shown.path, shown.channel), seconds=None)

    @routes.get("/call/figure")
    def call_figure() -> flask.Response:
        return _figure(call(), options.headerless)

    @routes.get("/call/sound")
    def call_sound() -> flask.Response:
        if options.listen_limits is None:
            flask.abort(403, _NOT_OPENED)
        results = open_now(options)
        rows = found(results, ["path", "channel", "duration_s"])
        return _sound(rows[0], _chosen(rows, ())[0], options.listen_limits, options.headerless)

    @routes.get("/upload")
    def upload_page() -> str:
        if "upload" not in flask.request.args:
            return show("upload.html", model=uploads.bundle.name, most_mb=options.most_upload_bytes // 2**20)
        shown, upload = uploaded()
        return _page(shown, said={}, seconds=upload.seconds)

    @routes.post("/upload")
    def upload_file() -> Any:
        file = flask.request.files.get("recording")
        if file is None or not file.filename:
            flask.abort(400, "No recording came with the form; choose a file first.")
        roles = flask.request.form.get("channel_roles", "").strip()
        stated = parse_roles(roles, what="who speaks on which channel") if roles else None
        upload = uploads.add(file.stream, file.filename, stated)
        return flask.redirect(f"/upload?{urlencode({'upload': upload.token})}", 303)

    @routes.get("/upload/figure")
    def upload_figure() -> flask.Response:
        return _figure(uploaded()[0], options.headerless)

    @routes.get("/upload/sound")
    def upload_sound() -> flask.Response:
        shown = uploaded()[0]
        return _sound(shown.row, shown.channel, UPLOAD_LIMITS, options.headerless)

    return routes


def _chosen(rows: list[dict[str, Any]], labels: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Return the channel that is asked for, by default the first scored one, and its row.

    A channel that is not scored has the row of its call, without what is said of another channel.
    """
    by_channel = {int(row["channel"]): row for row in rows if row["channel"] is not None}
    channel = flask.request.args.get("channel", min(by_channel, default=0), int)
    if channel in by_channel or not by_channel:
        return channel, by_channel.get(channel, rows[0])
    of_a_channel = {*calls_schema(labels).names} - _OF_THE_CALL
    return channel, {name: None if name in of_a_channel else value for name, value in rows[0].items()}


def _page(shown: Shown, **values: Any) -> str:
    means = {label: shown.row[f"mean_{label}"] for label in shown.labels}
    bars = None
    if None not in means.values():
        rows = [[label, f"{mean:.2f}"] for label, mean in means.items()]
        figure = charts.probability_bars(means, shown.labels)
        note = "Means over the voiced time of the scored channel."
        bars = Chart("Mean probabilities", note, figure, ["emotion", "mean probability"], rows)
    windows = records(shown.scored)
    number = max(1, flask.request.args.get("page", 1, int))
    return show(
        "recording.html",
        shown=shown,
        facts={name: value for name, value in shown.own.items() if value is not None},
        windows=windows[(number - 1) * _PAGE_WINDOWS : number * _PAGE_WINDOWS],
        moments=[[window["start_s"], window["end_s"], window["emotion"]] for window in windows],
        page_number=number,
        num_pages=max(1, -(-len(windows) // _PAGE_WINDOWS)),
        bars=bars,
        timeline=charts.timeline(shown.scored, shown.labels, shown.negative_labels),
        can_hear=shown.limits is not None,
        not_opened=_NOT_OPENED,
        all_labels=SAID,
        **values,
    )


def _figure(shown: Shown, headerless: Headerless) -> flask.Response:
    """Return waves, spectrogram and windows as a figure, or why there are none."""
    if shown.limits is None:
        return flask.jsonify(problem=_NOT_OPENED)
    try:
        picture = draw(original(shown.path, shown.limits, headerless, shown.row["duration_s"]), shown.limits)
    except AudioError as error:
        return flask.jsonify(problem=str(error))
    if not 0 <= shown.channel < len(picture.lowest):
        return flask.jsonify(problem=f"the recording has {len(picture.lowest)} channels")
    figure = charts.call_picture(picture, shown.channel, shown.scored, shown.labels, shown.negative_labels)
    return flask.jsonify(figure=figure)


def _sound(row: Mapping[str, Any], channel: int, limits: LimitSettings, headerless: Headerless) -> flask.Response:
    """Return a part of a recording, ``start`` to ``end`` in seconds, as WAV: the channel, or with ``all`` each."""
    start_s, end_s = (flask.request.args.get(name, -1.0, float) for name in ("start", "end"))
    if not 0 <= start_s < end_s <= start_s + _LONGEST_SOUND_S:
        flask.abort(400, f"Expected start and end in seconds, at most {_LONGEST_SOUND_S:.0f} apart.")
    span = Span(start_s, end_s, None if "all" in flask.request.args else channel)
    try:
        recording = original(row["path"], limits, headerless, row["duration_s"])
        parts = [sound for _, sound in cut(recording, [span], limits, _CONTEXT_S)]
    except AudioError as error:
        flask.abort(404, str(error))
    if not parts:
        flask.abort(404, "The recording ends before.")
    return flask.send_file(BytesIO(encoded(parts[0], "wav")), mimetype="audio/wav", conditional=True)
