"""A night in numbers: calls → counts, faults with their reasons, calls that need a person, groups, nights, talk.

Rows of calls are channels: a call with two scored channels has two. Counts of calls and hours go by call, everything
about emotion by row, weighted by the channel's voiced seconds. What is added to the table's columns has names that no
manifest's column can have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from scipy.special import stdtrit

from batchser.records import FAULTS, STATUSES
from batchser.results.opening import DAY, Results
from batchser.tables import OUR_PREFIX

#: Of the calls of the days at hand the most negative tenth is listed, one at least, as far as it sounds more negative
#: than not. No threshold alone can say it: four labels of six are negative, and a model that knows nothing would say
#: 0.67 of all calls.
NEGATIVE_PART: Final = 10
NEGATIVE_FROM: Final = 0.5
#: With fewer windows that the model is sure of a mean says little of a call.
LEAST_WINDOWS: Final = 4
#: With fewer calls a night has no interval: it would say nothing.
LEAST_CALLS: Final = 5
#: What an own column may have in values to be drawn; of more the most frequent are, and the others as one.
MOST_GROUPS: Final = 12
OTHERS: Final = "(others)"
NOT_STATED: Final = "(not stated)"
#: Columns that ``read_calls`` adds: time in a zone (of the start, else of scoring), its day, the hour of the start
#: (null where none is stated), and why a call needs a person: a text, empty for none.
LOCAL, DAY_HERE, HOUR, REASONS = (f"{OUR_PREFIX}{name}" for name in ("local", "day", "hour", "reasons"))
_NUMBERS: Final = re.compile(r"\d[\d.,]*")
_QUARTERS: Final = 4


@dataclass(frozen=True, slots=True)
class Night:
    """Some calls, counted."""

    num_calls: int
    hours: float
    scored_windows: int
    by_status: dict[str, int]
    num_faults: int
    abstained_share: float | None
    negativity: float | None
    num_attention: int
    num_negative: int
    num_escalated: int
    num_worsening: int
    first_day: str
    last_day: str
    models: tuple[str, ...]


#: What of calls the functions of this module read, besides ``mean_…`` and ``share_…`` and the manifest's own columns.
CALL_COLUMNS: Final = (
    "call_id", "path", "channel", "role", "status", "error", "started_at", "scored_at", "duration_s", "voiced_s",
    "talk_share", "overtalk_s", "num_scored", "emotion", "confidence", "negativity", "trend", "escalated",
    "escalation_s", "peak_emotion", "peak_start_s", "abstained_share", "model", "model_sha256",
)  # fmt: skip


def read_calls(
    results: Results, zone: ZoneInfo, first: date | None = None, last: date | None = None,
    where: pc.Expression | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Read the calls of some days as people in a zone count them, with the columns named above added.

    Who is among the most negative goes by the calls of these days that meet ``where``.

    Raises
    ------
    ConfigError : the table cannot be read
    """
    labels = [f"{kind}_{label}" for label in results.labels for kind in ("mean", "share")]
    columns = [*CALL_COLUMNS, *labels, *results.own_columns, *([DAY] if results.by_day else [])]
    near = results.around(first, last)  # of a dataset no other day's files
    wanted = where if near is None else near if where is None else near & where
    calls = results.read_calls(columns, wanted)
    started, scored = (pd.to_datetime(calls[name], utc=True) for name in ("started_at", "scored_at"))
    local = started.fillna(scored).dt.tz_convert(zone)
    calls[LOCAL] = local
    calls[DAY_HERE] = local.dt.strftime("%Y-%m-%d").fillna("")
    calls[HOUR] = started.dt.tz_convert(zone).dt.hour.astype("Int64")
    if first is not None:
        calls = calls[calls[DAY_HERE] >= first.isoformat()]
    if last is not None:
        calls = calls[calls[DAY_HERE] <= last.isoformat()]
    return calls.assign(**{REASONS: _reasons(calls)})


def _reasons(calls: pd.DataFrame) -> pd.Series:
    """Say of each row why it needs a person: of negative, escalated, worsening those that hold, with commas."""
    sure = calls["num_scored"] * (1 - calls["abstained_share"].fillna(1))
    enough = (calls["status"] == "ok") & (sure >= LEAST_WINDOWS)
    known = calls.loc[enough, "negativity"].dropna()
    highest = known[known >= NEGATIVE_FROM].nlargest(max(1, len(known) // NEGATIVE_PART), keep="first")
    signs = {
        "negative": pd.Series(calls.index.isin(highest.index), index=calls.index),
        "escalated": enough & calls["escalated"].eq(True),
        "worsening": enough & (calls["trend"] == "worsening"),
    }
    reasons = pd.Series("", index=calls.index, dtype=object)
    for word, holds in signs.items():
        reasons = reasons.where(~holds, reasons + np.where(reasons.eq(""), "", ", ") + word)
    return reasons


def summed_up(calls: pd.DataFrame) -> Night:
    """Count calls."""
    by_call = one_a_call(calls)
    counts = by_call["status"].value_counts()
    scored = calls[calls["num_scored"] > 0]
    return Night(
        num_calls=len(by_call),
        hours=float(by_call["duration_s"].sum()) / 3600,
        scored_windows=int(calls["num_scored"].sum()),
        by_status={status: int(counts[status]) for status in reversed(STATUSES) if status in counts.index},
        num_faults=int(by_call["status"].isin(list(FAULTS)).sum()),
        abstained_share=_weighted(scored, "abstained_share"),
        negativity=_weighted(scored, "negativity"),
        num_attention=_num_calls(calls, calls[REASONS] != ""),
        num_negative=_num_calls(calls, calls[REASONS].str.contains("negative", regex=False)),
        num_escalated=_num_calls(calls, calls[REASONS].str.contains("escalated", regex=False)),
        num_worsening=_num_calls(calls, calls[REASONS].str.contains("worsening", regex=False)),
        first_day=str(calls[DAY_HERE].min()) if len(calls) else "",
        last_day=str(calls[DAY_HERE].max()) if len(calls) else "",
        models=tuple(sorted(calls["model"].dropna().unique())),
    )


def _num_calls(calls: pd.DataFrame, which: pd.Series) -> int:
    return int(calls.loc[which, "call_id"].nunique())


def one_a_call(calls: pd.DataFrame) -> pd.DataFrame:
    """Keep one row of each call; an ``ok`` channel speaks for it, else the first status of STATUSES."""
    rank = {status: number for number, status in enumerate(("ok", *(s for s in STATUSES if s != "ok")))}
    order = calls["status"].map(rank).sort_values(kind="stable").index
    return calls.loc[order].drop_duplicates("call_id").sort_index()


def _weighted(rows: pd.DataFrame, name: str) -> float | None:
    """Return the mean of a column weighted by voiced seconds; None where nothing is voiced."""
    known = rows[rows[name].notna() & rows["voiced_s"].notna()]
    weight = known["voiced_s"].to_numpy(np.float64)
    total = weight.sum()
    return float(known[name].to_numpy(np.float64) @ weight / total) if total > 0 else None


def need_a_person(calls: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with reasons: those with the most of them first, then the most negative."""
    chosen = calls[calls[REASONS] != ""]
    number = chosen[REASONS].str.count(",")
    order = pd.DataFrame({"number": number, "negativity": chosen["negativity"]})
    return chosen.loc[order.sort_values(["number", "negativity"], ascending=False, kind="stable").index]


def emotions_by(calls: pd.DataFrame, labels: Sequence[str], groups: pd.Series) -> pd.DataFrame:
    """Return, for each group, how its voiced time sounds.

    Columns: the labels and ``unsure`` (parts of the scored voiced time, together 1), ``negativity``, ``calls``.
    """
    shares = [f"share_{label}" for label in labels]
    scored = calls[(calls["num_scored"] > 0) & calls["voiced_s"].gt(0)]
    weight = scored["voiced_s"].to_numpy(np.float64)
    columns = [*shares, "abstained_share", "negativity"]
    products = pd.DataFrame(
        {name: scored[name].fillna(0).to_numpy(np.float64) * weight for name in columns}, index=scored.index
    ).assign(weight=weight)
    keys = groups.loc[scored.index]
    sums = products.groupby(keys, sort=True, dropna=True).sum()
    means = sums[columns].div(sums["weight"], axis=0)
    found = means.set_axis([*labels, "unsure", "negativity"], axis=1)
    return found.assign(calls=scored["call_id"].groupby(keys, sort=True).nunique())


def grouping(values: pd.Series) -> pd.Series | None:
    """Return a column as names of at most 13 groups; None where it does not divide calls, or names each of them.

    Numbers with many values become quarters, texts their most frequent values and the others. Times and lists are no
    groups.
    """
    known = values.dropna()
    if known.empty or not is_plain(known) or pd.api.types.is_datetime64_any_dtype(values):
        return None
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        values = values.astype("float64").replace([np.inf, -np.inf], np.nan)
        if values.nunique() > MOST_GROUPS:
            least = values.min()  # pandas begins a little below it
            cut = pd.qcut(values, _QUARTERS, duplicates="drop")
            named = cut.map(lambda part: f"{max(part.left, least):g} to {part.right:g}", na_action="ignore")
            return named.astype(object).fillna(NOT_STATED)
        texts = values.map(lambda value: f"{value:g}", na_action="ignore").astype(object)
    else:
        texts = values.map(str, na_action="ignore").astype(object)
    counts = texts.value_counts()
    of_the_most = counts.iloc[:MOST_GROUPS].sum()
    if len(counts) * 3 > len(known) * 2 or (len(counts) > MOST_GROUPS and of_the_most < len(known) / 2):
        return None  # ids and the like
    if len(counts) > MOST_GROUPS:
        texts = texts.where(texts.isin(counts.index[:MOST_GROUPS]) | texts.isna(), OTHERS)
    return texts.fillna(NOT_STATED)


def is_plain(known: pd.Series) -> bool:
    """Say whether a column without nulls holds single values, and not lists or records."""
    return not (known.dtype == object and len(known) and isinstance(known.iloc[0], list | dict | np.ndarray | tuple))


def by_night(calls: pd.DataFrame) -> pd.DataFrame:
    """Return, by day, ``calls``, ``scored`` ones, ``negativity``, its 95 % interval ``low`` to ``high``, ``attention``.

    The mean is weighted by voiced seconds, as everywhere; a call is one observation, however many channels it has. The
    interval is that of a ratio of sums (Cochran, Sampling Techniques, 1977, eq. 6.13) with Student's t.
    """
    scored = calls[calls["negativity"].notna() & calls["voiced_s"].gt(0)]
    weight = scored["voiced_s"].astype("float64")
    of_call = (
        pd.DataFrame(
            {"day": scored[DAY_HERE], "call": scored["call_id"], "w": weight, "wx": weight * scored["negativity"]}
        )
        .groupby(["day", "call"], sort=False)
        .sum()
        .reset_index("call", drop=True)
    )
    sums = of_call.groupby("day").sum()
    mean, count = sums["wx"] / sums["w"], of_call.groupby("day").size()
    residuals = (of_call["wx"] - of_call["w"] * mean.reindex(of_call.index)) ** 2
    freedom = (count - 1).where(count >= LEAST_CALLS)  # null: no interval
    error = np.sqrt(residuals.groupby("day").sum() * count / freedom) / sums["w"] * stdtrit(freedom, 0.975)
    everyday = calls.groupby(DAY_HERE, sort=True)["call_id"].nunique()
    attention = calls[calls[REASONS] != ""].groupby(DAY_HERE)["call_id"].nunique()
    found = pd.DataFrame({"negativity": mean, "low": (mean - error).clip(0, 1), "high": (mean + error).clip(0, 1)})
    counts = {"calls": everyday, "scored": count, "attention": attention}
    whole = {name: number.reindex(everyday.index).fillna(0).astype(int) for name, number in counts.items()}
    return found.reindex(everyday.index).assign(**whole)


def faults_by_reason(calls: pd.DataFrame) -> pd.DataFrame:
    """Return why calls could not be scored: ``status``, ``reason``, ``calls``, ``example``, the most frequent first.

    Sentences that differ in their numbers alone count as one; the first of them speaks for all.
    """
    rows = one_a_call(calls)
    rows = rows[rows["status"] != "ok"]
    said = rows["error"].fillna("")
    alike = said.str.replace(_NUMBERS, "#", regex=True)
    groups = rows.assign(said=said, alike=alike).groupby(["status", "alike"], sort=False)
    found = groups.agg(reason=("said", "first"), calls=("call_id", "size"), example=("call_id", "first")).reset_index()
    rank = {status: number for number, status in enumerate(STATUSES)}
    order = pd.DataFrame({"rank": found["status"].map(rank), "calls": -found["calls"]})
    return found.loc[order.sort_values(["rank", "calls"]).index, ["status", "reason", "calls", "example"]]
