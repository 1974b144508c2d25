"""Many calls: what the filters leave, in numbers, charts and a table."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import flask
import pandas as pd

from batchser.dashboard.filters import OWN, USUAL_DAYS, filtered, read_filters
from batchser.dashboard.options import Options, call_address, open_now, show
from batchser.errors import ConfigError
from batchser.pages.charts import clock
from batchser.pages.report import groupings, sections, timelines
from batchser.pages.sheets import spreadsheet_safe
from batchser.results import night
from batchser.results.opening import is_null, records

_PAGE_ROWS: Final = 50
#: What visitors type, and may mistype.
_TYPED: Final = ("from", "to", "where")
#: Millions of calls are gigabytes while they are counted: visitors take turns.
_ONE_AT_A_TIME: Final = threading.Lock()
_MOST_TIMELINES: Final = 5
_MOST_OWN: Final = 3
#: Columns of the table, with their headings; some of the manifest's own stand before them.
_COLUMNS: Final = {
    night.LOCAL: "begun", "role": "role", "duration_s": "length", "status": "status", "emotion": "emotion",
    "negativity": "negativity", "trend": "trend", "abstained_share": "unsure", night.REASONS: "needs a person",
}  # fmt: skip


def pages(options: Options) -> flask.Blueprint:
    """Return the routes of this module."""
    routes = flask.Blueprint("overview", __name__)

    @routes.get("/")
    def overview() -> tuple[str, int]:
        results = open_now(options)
        asked = flask.request.args
        mistakes: tuple[str, ...] = ()
        with _ONE_AT_A_TIME:
            try:
                filters = read_filters(asked, results)
                calls, choices = filtered(results, filters, options.zone)
            except ConfigError as error:  # the form stays as it was filled in, and says what is wrong
                mistakes = error.faults
                filters = read_filters({name: asked[name] for name in asked if name not in _TYPED}, results)
                calls, choices = filtered(results, filters, options.zone)
            values = sections(results, calls, groupings(results, calls), options.search)
        ordered, sort, down = _sorted(calls, flask.request.args.get("sort", ""))
        num_pages = max(1, -(-len(calls) // _PAGE_ROWS))
        number = min(max(1, flask.request.args.get("page", 1, int)), num_pages)
        shown = ordered.iloc[(number - 1) * _PAGE_ROWS : number * _PAGE_ROWS]
        text = show(
            "overview.html",
            mistakes=mistakes,
            typed={name: asked[name] for name in _TYPED if name in asked},
            **values,
            timelines=timelines(results, calls, _MOST_TIMELINES),
            filters=filters,
            choices=choices,
            own_prefix=OWN,
            usual_days=USUAL_DAYS,
            reasons_column=night.REASONS,
            days=results.days(),
            link=lambda row: call_address(row, results),
            zone=str(options.zone),
            rows=records(shown.assign(**{night.LOCAL: shown[night.LOCAL].where(shown["started_at"].notna())})),
            num_rows=len(calls),
            columns={"call_id": "call", **{name: name for name in results.own_columns[:_MOST_OWN]}, **_COLUMNS},
            cell=_cell,
            page_number=number,
            num_pages=num_pages,
            sort=sort,
            down=down,
        )
        return text, 400 if mistakes else 200

    @routes.get("/calls.csv")
    def calls_csv() -> flask.Response:
        results = open_now(options)
        with _ONE_AT_A_TIME:
            calls, _ = filtered(results, read_filters(flask.request.args, results), options.zone)
        kept = calls.drop(columns=[night.LOCAL, night.HOUR, "path"])
        return as_csv(list(kept.columns), kept.itertuples(index=False, name=None), "calls.csv")

    return routes


def _sorted(calls: pd.DataFrame, asked: str) -> tuple[pd.DataFrame, str, bool]:
    """Sort calls as the address says: ``-negativity`` from the highest down; nulls last."""
    name, down = asked.removeprefix("-"), asked.startswith("-")
    if name not in calls.columns or not night.is_plain(calls[name].dropna()):
        return calls, "", False
    if name == night.REASONS:
        first = night.need_a_person(calls)
        rest = calls.drop(first.index)
        return (pd.concat([first, rest]) if down else pd.concat([rest, first[::-1]])), name, down
    return calls.sort_values(name, ascending=not down, kind="stable", na_position="last"), name, down


def _cell(name: str, value: Any) -> str:
    """Return a value of the table as text."""
    if value is None:
        return ""
    if name == "duration_s":
        return clock(value)
    if name == night.LOCAL:
        return f"{value:%Y-%m-%d %H:%M}"
    if name == "abstained_share":
        return f"{value * 100:.0f} %"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]], name: str) -> flask.Response:
    """Return a table to be saved, line by line, in which no cell is a formula."""

    def lines() -> Iterator[str]:
        yield _line([spreadsheet_safe(cell) for cell in header])
        for row in rows:
            yield _line(["" if is_null(cell) else spreadsheet_safe(cell) for cell in row])

    response = flask.Response(lines(), content_type="text/csv; charset=utf-8")
    response.headers["Content-Disposition"] = f"attachment; filename={name}"
    return response


def _line(cells: Sequence[Any]) -> str:
    file = io.StringIO()
    csv.writer(file).writerow(cells)
    return file.getvalue()
