"""The review loop: moments worth hearing, and what listeners say they really are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import flask
import pyarrow.dataset as ds

from batchser.dashboard.labels import COLUMNS, Labels
from batchser.dashboard.options import Options, call_address, open_now, show
from batchser.dashboard.overview import as_csv
from batchser.errors import AudioError, ConfigError
from batchser.listening import original
from batchser.results import Moment, select_moments
from batchser.results.moments import rank_of
from batchser.results.opening import DAY, records
from batchser.training.corpora.labels import LABELS

#: What a listener may say: what training keeps (it drops boredom, unless told otherwise).
SAID: Final = LABELS
_MOST_MOMENTS: Final = 50


def pages(options: Options, labels: Labels) -> flask.Blueprint:
    """Return the routes of this module."""
    routes = flask.Blueprint("reviews", __name__)

    @routes.get("/moments")
    def moments() -> tuple[str, int]:
        results = open_now(options)
        emotion, where = (flask.request.args.get(name, "").strip() for name in ("emotion", "where"))
        columns = ("path", "role", *([DAY] if results.by_day else []))
        found: list[Moment] = []
        mistakes: tuple[str, ...] = ()
        try:
            found = select_moments(
                results, emotion=emotion or None, where=where, top=_MOST_MOMENTS, call_columns=columns, option=""
            )
        except ConfigError as error:
            mistakes = error.faults
        text = show(
            "moments.html",
            mistakes=mistakes,
            moments=[
                (
                    moment,
                    call_address({**moment.call, "call_id": moment.call_id, "channel": moment.channel}, results),
                    labels.of(str(moment.call.get("path")), moment.channel).get(moment.peak_start_s),
                )
                for moment in found
            ],
            emotion=emotion,
            where=where,
            labels=results.labels,
            rank=rank_of(emotion or None),
            can_hear=options.listen_limits is not None,
            all_labels=SAID,
        )
        return text, 400 if mistakes else 200

    @routes.get("/labels")
    def all_labels() -> str:
        return show("labels.html", rows=labels.rows(), file=labels.path.name)

    @routes.get("/labels.csv")
    def labels_csv() -> flask.Response:
        return as_csv(COLUMNS, ([row[name] for name in COLUMNS] for row in labels.rows()), "labels.csv")

    @routes.post("/labels")
    def add_label() -> flask.Response:
        said = flask.request.get_json()
        if not isinstance(said, dict) or said.get("emotion") not in SAID:
            flask.abort(400, f"Expected an object with an emotion, one of {', '.join(SAID)}.")
        try:
            start_s, end_s, channel = float(said["start_s"]), float(said["end_s"]), int(said["channel"])
        except (KeyError, TypeError, ValueError, OverflowError):
            flask.abort(400, "Expected start_s, end_s and channel as numbers.")
        rows = _rows_of(str(said.get("call_id", "")), channel, start_s, end_s)
        told = {name: str(said.get(name, "")) for name in ("emotion", "listener", "note")}
        return flask.jsonify(saved=labels.add([row | told for row in rows]))

    def _rows_of(call_id: str, channel: int, start_s: float, end_s: float) -> list[dict[str, str]]:
        """Return what is known of each scored window of a moment, which must begin and end as windows do."""
        results = open_now(options)
        own = [options.speaker_column] if options.speaker_column else []
        columns = ["path", "channel", "duration_s", "model", *own, *([DAY] if results.by_day else [])]
        found = records(results.read_calls(columns, ds.field("call_id") == call_id))
        calls = [row for row in found if row["channel"] == channel]
        if not calls:
            flask.abort(404, f"There is no scored channel {channel} of a call {call_id!r}.")
        call = calls[0]
        windows = results.windows_of([call_id], [call[DAY]] if results.by_day else ())
        within = windows["start_s"].ge(start_s) & windows["end_s"].le(end_s)
        inside = records(windows[windows["channel"].eq(channel) & within])
        if not inside or inside[0]["start_s"] != start_s or inside[-1]["end_s"] != end_s:
            flask.abort(400, f"From {start_s:g} to {end_s:g} s are no windows of this channel.")
        speaker = call[options.speaker_column] if options.speaker_column else None
        known = {
            "path": call["path"],
            "speaker": str(speaker) if speaker is not None else f"call:{call_id}",
            "channel": str(channel),
            "call_id": call_id,
            "model": call["model"],
            **_stated(call),
        }
        return [
            known
            | {
                "start_s": f"{window['start_s']:.3f}",
                "end_s": f"{window['end_s']:.3f}",
                "model_emotion": window["emotion"],
                "model_confidence": f"{window['confidence']:.3f}",
            }
            for window in inside
            if window["emotion"] is not None
        ]

    def _stated(call: Mapping[str, Any]) -> dict[str, str]:
        """Return how a headerless recording is read, which training must be told, too."""
        if options.listen_limits is None or options.headerless.encoding is None:
            return {}
        try:
            known = original(call["path"], options.listen_limits, options.headerless, call["duration_s"])
        except AudioError:
            return {}
        return {"encoding": known.encoding, "rate_hz": str(known.rate_hz)} if known.encoding else {}

    return routes
