"""Reading results again: a file or a dataset, conditions, moments, a night in numbers."""

from __future__ import annotations

import contextlib
import decimal
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from generated_results import LABELS, NEGATIVE, write_results
from hypothesis import given
from hypothesis import strategies as st

from batchser.errors import ConfigError
from batchser.results import Results, night, open_results, parse_condition, select_moments
from batchser.results.conditions import columns_of

UTC_ZONE = ZoneInfo("UTC")
FRAME = pd.DataFrame(
    {
        "negativity": np.array([0.1, 0.5, 0.9, np.nan], np.float32),
        "count": [1, 2, 3, 4],
        "queue": ["billing", "sales", None, "it's"],
        "my column": ["a", "b", "c", "d"],
        "done": [True, False, None, True],
        "begun": pd.to_datetime(["2026-11-20T08:00Z", "2026-11-20T09:00Z", None, "2026-11-21T00:00Z"]),
    }
)
TABLE = pa.Table.from_pandas(FRAME)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_results(folder / "r.parquet", 60, windows=12, nights=3, faults=2)
    write_results(folder / "grown", 60, windows=12, nights=3, faults=2)
    return folder


@pytest.fixture(scope="module", params=["r.parquet", "grown"])
def results(request: pytest.FixtureRequest, folder: Path) -> Results:
    return open_results(folder / request.param)


# ------------------------------------------------------------------------------------------------- opening


def test_a_file_and_a_dataset_give_the_same(folder: Path) -> None:
    one, other = open_results(folder / "r.parquet"), open_results(str(folder / "grown") + "/")
    assert one.labels == other.labels == LABELS
    assert one.negative_labels == other.negative_labels == NEGATIVE
    assert one.own_columns == other.own_columns == ("queue", "agent_group")
    assert (one.days(), other.days()) == ([], ["2026-11-02", "2026-11-03", "2026-11-04"])
    for read in ("read_calls", "read_windows"):
        left, right = getattr(one, read)(), getattr(other, read)()
        pd.testing.assert_frame_equal(left, right[left.columns])
    pd.testing.assert_frame_equal(
        one.windows_of(["call-000030"]), other.windows_of(["call-000030"], ["2026-11-03"])[one.segments.schema.names]
    )
    assert other.windows_of(["call-000030"], ["2026-11-02"]).empty


def test_what_is_no_result_is_told(tmp_path: Path, folder: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.segments.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    for where, words in (
        ("missing.parquet", "there is no such file"),
        ("missing", "there is no such folder"),
        (".", "is no dataset of batchser"),
        ("other.parquet", "is no result of batchser"),
        ("text.parquet", "no results can be read there"),
        ("other.segments.parquet", r"holds windows; give the table of calls, .*other\.parquet"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_results(tmp_path / where)
    with pytest.raises(ConfigError, match="--segments x: is for an OUT that is a file"):
        open_results(folder / "grown", "x")
    with pytest.raises(ConfigError, match=r"gone\.parquet: there is no such file"):
        open_results(folder / "r.parquet", tmp_path / "gone.parquet")


def test_tables_of_before_the_key_have_the_usual_negative_labels(tmp_path: Path, folder: Path) -> None:
    for name in ("r.parquet", "r.segments.parquet"):
        table = pq.read_table(folder / name)
        kept = {key: value for key, value in table.schema.metadata.items() if b"negative" not in key}
        pq.write_table(table.replace_schema_metadata(kept), tmp_path / name)
    assert open_results(tmp_path / "r.parquet").negative_labels == NEGATIVE


def test_an_empty_dataset_has_tables(tmp_path: Path) -> None:
    write_results(tmp_path / "grown", 0)
    results = open_results(tmp_path / "grown")
    assert results.labels == LABELS
    assert results.read_calls().empty
    assert select_moments(results) == []


# ------------------------------------------------------------------------------------------------- conditions


def matching(text: str) -> list[int]:
    table = TABLE
    for part in parse_condition(text, columns_of(TABLE.schema)):
        table = table.filter(part.expression)
    return [number - 1 for number in table["count"].to_pylist()]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", [0, 1, 2, 3]),
        ("negativity > 0.4", [1, 2]),
        ("not negativity > 0.4", [0]),  # a null is neither
        ("negativity is None", [3]),
        ("negativity is not None and count >= 2", [1, 2]),
        ("0.05 < negativity <= 0.5", [0, 1]),
        ("queue == 'billing' or count == 3", [0, 2]),
        ('queue == "it\'s"', [3]),
        ("queue in ['billing', 'sales'] and done", [0]),
        ("queue not in ('billing',)", [1, 3]),
        ("`my column` != 'a'", [1, 2, 3]),
        ("'b' <= `my column`", [1, 2, 3]),
        ("queue == '`my column`'", []),
        ("done == False", [1]),
        ("begun >= '2026-11-20T09:00'", [1, 3]),
        ("begun < '2026-11-20T09:30+01:00'", [0]),
        ("negativity > -1", [0, 1, 2]),
        ("queue != `my column`", [0, 1, 3]),
        ("count in [1.5, 2]", [1]),
        ("not (queue in ['billing'])", [1, 3]),  # a null is neither in nor out
        ("negativity in [0.5]", [1]),
    ],
)
def test_conditions(text: str, rows: list[int]) -> None:
    assert matching(text) == rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("negativty > 1", "there is no column 'negativty'; did you mean negativity"),
        ("__import__('os').system('true')", "is no condition"),
        ("queue.upper() == 'A'", "one of them must be a column"),
        ("(lambda: 1)()", "is no condition"),
        ("[c for c in queue]", "is no condition"),
        ("queue", "'queue' is a text in quotes, and no condition by itself"),
        ("queue > 3", "column 'queue': received 3, expected a text in quotes"),
        ("count == '3'", "column 'count': received '3', expected a number"),
        ("count == True", "expected a number"),
        ("count == None", "use `is None`"),
        ("done > True", "not more or less"),
        ("begun > 'yesterday'", "expected ISO 8601"),
        ("count > queue", "'count' is a number and 'queue' is a text in quotes"),
        ("queue in 'billing'", "`in` is for a column and a list"),
        ("count is 3", "`is` is for None alone"),
        ("1 < 2", "one of them must be a column"),
        ("queue in []", "`in` needs a list with something in it"),
        ("count >", "cannot be read"),
        ("count > 1e999", "no number that a table holds"),
        ("(" * 500 + "count > 1" + ")" * 500, "cannot be read"),
        ("count > 1 or " * 500 + "count > 1", "has 6509 characters"),
        ("count > 1; import os", "cannot be read"),
        ("(count := 3) > 1", "must be a column"),
    ],
)
def test_conditions_that_are_none(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        matching(text)
    assert words in str(caught.value)


@given(st.text(max_size=80) | st.from_regex(r"[a-z`'\"() <>=!\[\].,0-9_]{0,60}", fullmatch=True))
def test_whatever_stands_in_a_condition_is_a_condition_or_told(text: str) -> None:
    with contextlib.suppress(ConfigError):
        matching(text)


# ------------------------------------------------------------------------------------------------- moments


def windows_by_hand(results: Results) -> pd.DataFrame:
    windows = results.read_windows()
    windows = windows[windows["emotion"].notna()]
    calls = results.read_calls(["call_id", "channel", "queue", "negativity"])
    negativity = windows[[f"p_{label}" for label in NEGATIVE]].sum(axis=1)
    return windows.assign(negativity=negativity).merge(calls, on=["call_id", "channel"], suffixes=("", "_call"))


def covered(moments: list, windows: pd.DataFrame) -> set[tuple[str, int]]:
    """The windows inside of moments, as call and segment."""
    found = set()
    for moment in moments:
        inside = windows[
            (windows["call_id"] == moment.call_id)
            & (windows["channel"] == moment.channel)
            & (windows["start_s"] >= moment.start_s)
            & (windows["end_s"] <= moment.end_s)
        ]
        assert len(inside) == moment.num_windows
        found |= set(zip(inside["call_id"], inside["segment"], strict=True))
    return found


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"emotion": "angry"}, "emotion == 'angry' and not abstained"),
        ({"where": "negativity > 0.8"}, "negativity > 0.8"),
        ({"where": "negativity > 0.5 and queue == 'billing'"}, "negativity > 0.5 and queue == 'billing'"),
        ({"where": "negativity > 0.9 or queue == 'sales'"}, "negativity > 0.9 or queue == 'sales'"),
        ({"where": "call_negativity > 0.7 and negativity < 0.6"}, "negativity_call > 0.7 and negativity < 0.6"),
        ({"emotion": "sad", "where": "queue != 'sales'"}, "emotion == 'sad' and not abstained and queue != 'sales'"),
    ],
)
def test_moments_are_the_windows_that_match(results: Results, options: dict[str, str], wanted: str) -> None:
    moments = select_moments(results, top=10_000, **options)
    windows = windows_by_hand(results).astype({"abstained": bool})
    matching = windows.query(wanted)
    assert len(matching)
    assert covered(moments, windows) == set(zip(matching["call_id"], matching["segment"], strict=True))
    assert [m.score for m in moments] == sorted((m.score for m in moments), reverse=True)
    assert select_moments(results, top=3, **options) == moments[:3]
    rank = f"p_{options['emotion']}" if "emotion" in options else "negativity"
    assert moments[0].score == pytest.approx(matching[rank].max())


def test_neighbours_are_one_moment(results: Results) -> None:
    moments = select_moments(results, where="call_id == 'call-000003'")
    assert [(m.start_s, m.end_s, m.num_windows) for m in moments] == [(0.0, 36.0, 12)]
    windows = windows_by_hand(results)
    highest = windows[windows["call_id"] == "call-000003"].nlargest(1, "negativity")
    assert (moments[0].peak_start_s, moments[0].peak_end_s) == (highest["start_s"].item(), highest["end_s"].item())
    assert moments[0].call["path"] == "/recordings/3.wav"
    assert moments[0].call["started_at"] == datetime(2026, 11, 2, 7, 3, tzinfo=UTC)


def test_a_moment_is_a_minute_at_most(tmp_path: Path) -> None:
    results = open_results(write_results(tmp_path / "r.parquet", 2, windows=50))
    moments = select_moments(results, where="call_id == 'call-000001' and voiced_s > 0")
    assert sorted((m.start_s, m.end_s) for m in moments) == [(0.0, 60.0), (60.0, 120.0), (120.0, 150.0)]


@pytest.mark.parametrize("piece", [1, 5, 7, 1000])
def test_moments_do_not_depend_on_pieces(results: Results, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    whole = select_moments(results, emotion="angry", top=100)
    read = Results.batches

    def cut_up(*arguments: object) -> Iterator[pa.Table]:
        for table in read(*arguments):
            yield from (table.slice(first, piece) for first in range(0, table.num_rows, piece))

    monkeypatch.setattr(Results, "batches", cut_up)
    assert select_moments(results, emotion="angry", top=100) == whole


def test_moments_are_refused_with_every_fault(results: Results) -> None:
    with pytest.raises(ConfigError) as caught:
        select_moments(results, emotion="furious", where="quue == 'a'")
    assert "--emotion furious: the model knows angry" in str(caught.value)
    assert "did you mean queue" in str(caught.value)
    with pytest.raises(ConfigError, match=r"--by queue: expected a number of a window: .*p_angry"):
        select_moments(results, by="queue")


# ------------------------------------------------------------------------------------------------- a night


def test_a_night_in_numbers(results: Results) -> None:
    calls = night.read_calls(results, UTC_ZONE)
    numbers = night.summed_up(calls)
    assert (numbers.num_calls, numbers.num_faults, numbers.scored_windows) == (60, 2, 58 * 12)
    assert numbers.by_status == {"ok": 58, "unreadable": 2}
    assert numbers.hours == pytest.approx(58 * 36 / 3600)
    assert (numbers.first_day, numbers.last_day) == ("2026-11-02", "2026-11-04")
    chosen = night.need_a_person(calls)
    assert len(chosen) == numbers.num_attention > 0
    counts = chosen[night.REASONS].str.count(",").tolist()
    assert counts == sorted(counts, reverse=True)
    sure = calls[calls["num_scored"] * (1 - calls["abstained_share"]) >= 4]
    worst = sure.nlargest(max(1, len(sure) // 10), "negativity")
    assert len(worst)
    assert set(calls.index[calls[night.REASONS].str.contains("negative")]) == set(worst.index)
    shares = night.emotions_by(calls, LABELS, calls["queue"])
    np.testing.assert_allclose(shares[[*LABELS, "unsure"]].sum(axis=1), 1, atol=1e-6)
    assert shares["calls"].sum() == 58
    nights = night.by_night(calls)
    assert nights["calls"].tolist() == [20, 20, 20]
    assert (nights["low"] < nights["negativity"]).all()
    faults = night.faults_by_reason(calls)
    assert faults["calls"].tolist() == [2]  # sentences that differ in a number alone are one reason
    assert faults["status"].tolist() == ["unreadable"]


def test_hours_and_days_are_those_of_the_zone(results: Results) -> None:
    calls = night.read_calls(results, ZoneInfo("Pacific/Kiritimati"))  # UTC+14: 7 h is 21 h
    assert calls[night.HOUR].iloc[0] == 21
    assert night.summed_up(calls).first_day == "2026-11-02"
    assert calls[night.DAY_HERE].iloc[30] == "2026-11-03"


def test_the_most_negative_tenth_is_of_the_days_at_hand(results: Results) -> None:
    day = date(2026, 11, 3)
    alone = night.read_calls(results, UTC_ZONE, day, day)
    assert len(alone) == 20
    known = alone[alone["num_scored"] * (1 - alone["abstained_share"]) >= 4]
    assert alone[night.REASONS].str.contains("negative").sum() == max(1, len(known) // 10)
    for first, last in ((None, None), (date.min, date.max), (date(2026, 11, 2), None)):
        assert len(night.read_calls(results, UTC_ZONE, first, last)) == 60


def calls_of(negativity: list[float], voiced_s: list[float], call_ids: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "call_id": call_ids, "negativity": negativity, "voiced_s": voiced_s, night.DAY_HERE: "2026-11-02",
            night.REASONS: "",
        }
    )  # fmt: skip


def test_a_nights_interval_is_of_calls() -> None:
    rng = np.random.default_rng(3)
    ids = [f"call-{k}" for k in range(30)]
    one = calls_of(rng.random(30).tolist(), [10.0] * 30, ids)
    (row,) = night.by_night(one).itertuples()
    error = scipy.stats.sem(one["negativity"]) * scipy.stats.t.ppf(0.975, 29)
    assert (row.negativity, row.low) == pytest.approx((one["negativity"].mean(), one["negativity"].mean() - error))
    (twice,) = night.by_night(pd.concat([one, one])).itertuples()  # two channels a call say no more than one
    assert (twice.low, twice.high, twice.scored) == pytest.approx((row.low, row.high, 30))
    (uneven,) = night.by_night(calls_of([0.2, 0.8], [30.0, 10.0], ids[:2])).itertuples()
    assert uneven.negativity == pytest.approx(0.35)
    assert np.isnan(uneven.low)  # of two calls nobody can say


def test_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(400):
        voiced = rng.gamma(2.0, 30.0, 40)
        negativity = np.clip(rng.normal(0.4, 0.15, 40), 0, 1)
        (row,) = night.by_night(
            calls_of(negativity.tolist(), voiced.tolist(), [str(k) for k in range(40)])
        ).itertuples()
        hits += row.low <= 0.4 <= row.high
    assert 0.9 < hits / 400 < 0.98


#: Names that pages have for themselves, or that columns of ours begin with.
OWN_NAMES = (
    "score",
    "reasons",
    "day",
    "hour",
    "local",
    "call",
    "begun",
    "minutes",
    "mean_wait",
    "page",
    "from",
    "where",
)


def with_own(out: Path, **columns: pa.Array) -> Path:
    """Give every call columns of its manifest's own."""
    table = pq.read_table(out)
    end = table.schema.get_field_index("source_sha256")
    for name, values in reversed(columns.items()):
        table = table.add_column(end, name, values)
    pq.write_table(table, out)
    return out


def test_own_columns_may_have_any_name_and_type(tmp_path: Path) -> None:
    values = pa.array([f"v{k % 3}" for k in range(60)])
    out = with_own(
        write_results(tmp_path / "r.parquet", 60),
        **dict.fromkeys(OWN_NAMES, values),
        tags=pa.array([["a"]] * 59 + [None]),
        size=pa.array([float("inf"), *map(float, range(59))]),
        nothing=pa.nulls(60),
        due=pa.array([datetime(2026, 11, 2, tzinfo=UTC)] * 60),
        price=pa.array([decimal.Decimal("1.50")] * 60),
        done=pa.array([True, None] * 30),
        record=pa.array([{"a": 1}] * 60),
    )
    results = open_results(out)
    assert results.labels == LABELS
    calls = night.read_calls(results, UTC_ZONE)
    for name in OWN_NAMES:
        assert calls[name].tolist() == values.to_pylist()
        moments = select_moments(results, where=f"`{name}` == 'v1' and negativity > 0.3")
        assert moments
        assert {int(moment.call_id[-1:]) % 3 for moment in moments if moment.call_id < "call-000010"} <= {1}
    assert select_moments(results, where="tags is not None and negativity > 0.1")
    for name in ("tags", "record", "nothing", "due"):
        assert night.grouping(calls[name]) is None
    assert set(night.grouping(calls["size"])) >= {"(not stated)"}


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        (["a", "b", "a", None], {"a", "b", "(not stated)"}),
        ([f"id-{k}" for k in range(40)], None),
        ([None, None], None),
        ([1, 2, 2, None], {"1", "2", "(not stated)"}),
        ([True, False, True, True], {"True", "False"}),
        ([105, 131, 94], None),  # a number a call says nothing of groups
        ([*range(100)], {"0 to 24.75", "24.75 to 49.5", "49.5 to 74.25", "74.25 to 99"}),
        (["rest"] * 5 + [f"w{k}" for k in range(30) for _ in range(2)], None),
    ],
)
def test_grouping(values: list, groups: set[str] | None) -> None:
    found = night.grouping(pd.Series(values))
    assert (found is None) if groups is None else set(found) == groups


def test_many_values_leave_the_most_frequent_and_the_others() -> None:
    values = [f"queue-{k:02}" for k in range(15) for _ in range(15 - k)]
    found = night.grouping(pd.Series(values))
    assert set(found) == {*(f"queue-{k:02}" for k in range(12)), "(others)"}
    assert (found == "(others)").sum() == 3 + 2 + 1
