"""``batchser report``: a night's results as one page that needs no network, for a team lead at nine in the morning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import pandas as pd

from batchser.pages import charts
from batchser.pages.render import asset, packed_columns, page, plotly_js, script_hash
from batchser.results import night
from batchser.results.opening import DAY, Results, open_results, records

#: Calls that are drawn; the table below has the others.
MOST_TIMELINES: Final = 20
#: Own columns that are drawn; more would be no page for people.
MOST_COLUMNS: Final = 8
_MOST_FAULTS: Final = 100
_MOST_IN_TABLE: Final = 2

#: By the manifest's columns: the name of each call's group.
Groups = Mapping[str, pd.Series | None]


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure with its title, what it says in words, and its numbers as a table."""

    title: str
    note: str
    figure: charts.Figure
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class TimelineOf:
    """A call that needs a person: its row with ``reasons``, and its windows drawn, ``bar_s`` seconds a bar."""

    call: dict[str, Any]
    reasons: list[str]
    figure: charts.Figure
    bar_s: float


def write_report(
    out: str,
    segments: str | None,
    zone: ZoneInfo,
    search: Sequence[Path],
    first: date | None = None,
    last: date | None = None,
) -> tuple[str, int]:
    """Return the page of what a run left at OUT, of some days or all, and of how many calls it is.

    Raises
    ------
    ConfigError : there are no results
    """
    results = open_results(out, segments)
    calls = night.read_calls(results, zone, first, last)
    groups = groupings(results, calls)
    values = sections(results, calls, groups, search) | {
        "zone": str(zone),
        "timelines": timelines(results, calls),
        "table": packed_columns(_table(calls, groups)),
        "made_at": datetime.now(UTC).astimezone(zone).strftime("%Y-%m-%d %H:%M"),
        "style": asset("style.css"),
        "scripts": [plotly_js(), asset("charts.js"), asset("table.js")],
    }
    policy = " ".join(script_hash(script) for script in values["scripts"])
    return page("report.html", policy=policy, **values), values["night"].num_calls


def groupings(results: Results, calls: pd.DataFrame) -> Groups:
    """Return the manifest's columns as groups of calls, the queue first; None for one that does not divide them."""
    names = sorted(results.own_columns, key=lambda name: name != "queue")  # the others in the manifest's order
    return {name: night.grouping(calls[name]) for name in names}


def sections(results: Results, calls: pd.DataFrame, groups: Groups, search: Sequence[Path]) -> dict[str, Any]:
    """Return what report and dashboard both say of some calls."""
    numbers = night.summed_up(calls)
    faults = night.faults_by_reason(calls)
    return {
        "out": results.out,
        "labels": results.labels,
        "negative_labels": results.negative_labels,
        "night": numbers,
        "scores": honest_scores(calls, search),
        "charts": _charts(results, calls, groups),
        "not_drawn": _not_drawn(groups),
        "faults": records(faults.head(_MOST_FAULTS)),
        "num_more_faults": max(0, len(faults) - _MOST_FAULTS),
    }


def timelines(results: Results, calls: pd.DataFrame, most: int = MOST_TIMELINES) -> list[TimelineOf]:
    """Draw the first calls that need a person."""
    chosen = night.need_a_person(calls).head(most)
    if chosen.empty:
        return []
    windows = results.windows_of(chosen["call_id"].tolist(), chosen[DAY].tolist() if results.by_day else ())
    scored = windows[windows["emotion"].notna()]
    groups = {(call_id, channel): rows for (call_id, channel), rows in scored.groupby(["call_id", "channel"])}
    return [
        TimelineOf(
            row,
            row[night.REASONS].split(", "),
            charts.timeline(groups[key], results.labels, results.negative_labels),
            charts.bar_s(groups[key]),
        )
        for row in records(chosen)
        if (key := (row["call_id"], row["channel"])) in groups
    ]


def honest_scores(calls: pd.DataFrame, search: Sequence[Path]) -> list[str]:
    """Say of each model what its card says: a score with its protocol and interval, or that the card is not here."""
    from batchser.bundle import installed, open_bundle
    from batchser.errors import BundleError
    from batchser.training.protocols import describe

    bundles = {}
    for folder in installed(search):
        try:
            bundle = open_bundle(folder)
        except BundleError:
            continue
        bundles[bundle.sha256] = bundle
    said = []
    models = calls[["model", "model_sha256"]].drop_duplicates().sort_values(["model", "model_sha256"])
    for name, sha256 in models.itertuples(index=False):
        found = bundles.get(sha256)
        clips = found.scores.get("clips") if found else None
        if found is None or not clips:
            said.append(f"{name}: its card is not installed here, so what it is worth is not known on this page.")
            continue
        interval = [f"{value * 100:.0f}" for value in clips["intervals"]["uar"] or ()]
        known = f" (95 % interval {' to '.join(interval)})" if interval else ""
        data = ", ".join(corpus["name"] for corpus in found.data)
        protocol = describe(found.scores.get("protocol", "speaker-folds"))
        said.append(
            f"{name}: of test clips ({data}, on a {found.scores.get('line', 'mu-law')} line) it names "
            f"{clips['uar'] * 100:.0f} %{known} right, each of its {len(found.labels)} emotions counting the same; "
            f"chance would be {100 / len(found.labels):.0f} %. {protocol}"
        )
    return said


# --------------------------------------------------------------------------------------------------- charts


def _charts(results: Results, calls: pd.DataFrame, groups: Groups) -> list[Chart]:
    scored = calls[calls["num_scored"] > 0]
    if scored.empty:
        return []
    found = [_by(results, calls, pd.Series("all", index=calls.index), "All calls", "call")]
    drawn = [(name, group) for name, group in groups.items() if group is not None][:MOST_COLUMNS]
    found += [_by(results, calls, group, f"By {name}", name) for name, group in drawn]
    if calls[night.HOUR].notna().any():
        hours = calls[night.HOUR].map(lambda hour: f"{hour:02}:00", na_action="ignore")
        found.append(_by(results, calls, hours, "By hour of the call's start", "hour"))
    if len(calls[night.DAY_HERE].unique()) > 1:
        found.append(_nights(calls))
    return [*found, *_talk(calls)]


def _not_drawn(groups: Groups) -> list[str]:
    """Say which of the manifest's columns have no chart, and why."""
    no_groups = [name for name, group in groups.items() if group is None]
    too_many = [name for name, group in groups.items() if group is not None][MOST_COLUMNS:]
    said = [f"{', '.join(no_groups)}: divides calls into no groups."] if no_groups else []
    return said + ([f"{', '.join(too_many)}: {MOST_COLUMNS} columns are drawn at most."] if too_many else [])


def _by(results: Results, calls: pd.DataFrame, groups: pd.Series, title: str, name: str) -> Chart:
    found = night.emotions_by(calls, results.labels, groups)
    columns = [*results.labels, charts.UNSURE]
    rows = [
        [str(group), f"{row['calls']:.0f}", f"{row['negativity']:.2f}", *(f"{row[c] * 100:.0f} %" for c in columns)]
        for group, row in found.iterrows()
    ]
    note = "Weighted by voiced seconds; what the model is not sure of is not counted as an emotion."
    return Chart(title, note, charts.emotion_bars(found, results.labels), [name, "calls", "negativity", *columns], rows)


def _nights(calls: pd.DataFrame) -> Chart:
    found = night.by_night(calls)
    rows = []
    for day, row in zip(found.index, records(found), strict=True):
        interval = f"{_or_dash(row['low'])} to {_or_dash(row['high'])}"
        counts = [str(row[name]) for name in ("calls", "scored", "attention")]
        rows.append([str(day), *counts[:2], _or_dash(row["negativity"]), interval, counts[2]])
    note = "Mean negativity of a night's calls, weighted by voiced seconds; the band is its 95 % interval."
    header = ["night", "calls", "scored", "negativity", "95 % interval", "need a person"]
    return Chart("Night by night", note, charts.nights_line(found), header, rows)


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _talk(calls: pd.DataFrame) -> list[Chart]:
    """Talk share and overtalk: known where both parties have channels of their own."""
    known = calls[calls["talk_share"].notna() & calls["overtalk_s"].notna() & calls["duration_s"].gt(0)]
    if known.empty:
        return []
    talk = known["talk_share"] * 100
    overtalk = known["overtalk_s"] / known["duration_s"] * 100
    rest = len(calls) - len(known)
    note = f"Of {len(known)} scored channels; {rest} more carry both parties, or could not be read." if rest else ""
    most = max(5.0, float(overtalk.quantile(0.99)))
    tenths = [f"{q:.0%}" for q in (0.1, 0.5, 0.9)]
    quantiles = [[f"{s.quantile(q):.1f} %" for q in (0.1, 0.5, 0.9)] for s in (talk, overtalk)]
    return [
        Chart("Talk share", f"The scored channel's part of all voiced seconds. {note}",
              charts.histogram(talk, title="talk share", most=100, suffix=" %"), tenths, quantiles[:1]),
        Chart("Overtalk", f"The part of a call in which both speak at once. {note}",
              charts.histogram(overtalk, title="overtalk", most=most, suffix=" %"), tenths, quantiles[1:]),
    ]  # fmt: skip


def _table(calls: pd.DataFrame, groups: Groups) -> dict[str, list[Any]]:
    """Return all rows as short columns: what can be looked up on the page."""
    begun = calls[night.LOCAL].where(calls["started_at"].notna()).dt.strftime("%Y-%m-%d %H:%M").fillna("")
    first = {"call": calls["call_id"], "begun": begun}
    rest: dict[str, pd.Series] = {
        "role": calls["role"].fillna(""),
        "minutes": (calls["duration_s"] / 60).round(1),
        "status": calls["status"],
        "emotion": calls["emotion"].fillna(""),
        "negativity": calls["negativity"].astype("float64").round(2),
        "trend": calls["trend"].fillna(""),
        "unsure": (calls["abstained_share"].astype("float64") * 100).round(0),
        "needs a person": calls[night.REASONS],
    }
    own = {}
    for name in [name for name, group in groups.items() if group is not None][:_MOST_IN_TABLE]:
        heading = f"{name} (manifest)" if name in first or name in rest else name
        own[heading] = calls[name].map(str, na_action="ignore").fillna("")
    columns = first | own | rest
    return {name: [None if pd.isna(v) else v for v in column.tolist()] for name, column in columns.items()}
