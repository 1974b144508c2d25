"""The tables' columns, types and nulls; rows from outcomes; what pandas reads back."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchser import tables
from batchser.errors import ConfigError
from batchser.records import MUSIC, SILENCE, SPEECH, CallSummary, Outcome, Recording, WindowScores
from batchser.tables import Provenance

LABELS = ("angry", "neutral")
PROVENANCE = Provenance("telephone", "a" * 64, "b" * 64, "0.1.0", {"roles": ["customer"]}, ["angry"])
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def channel_of(num_windows: int, channel: int = 0, role: str = "customer") -> WindowScores:
    """Build a channel whose odd windows are scored, the fourth of them (7) too uncertain."""
    number = np.arange(num_windows)
    angry = np.where(number % 2 == 1, 0.9 - 0.05 * number, np.nan)
    return WindowScores(
        channel=channel,
        role=role,
        start_s=3.0 * number,
        end_s=3.0 * number + 3,
        kind=np.where(number % 2 == 1, SPEECH, np.where(number % 4 == 0, SILENCE, MUSIC)).astype(np.int8),
        voiced_s=np.where(number % 2 == 1, 2.5, 0.25),
        overtalk_s=np.zeros(num_windows),
        level_dbfs=np.full(num_windows, -20, np.float32),
        probabilities=np.stack([angry, 1 - angry], axis=1).astype(np.float32),
        threshold=0.6,
    )


def outcome_of(index: int, num_windows: int = 9, **changes: object) -> Outcome:
    customer = channel_of(num_windows, 1)
    agent = dataclasses.replace(channel_of(num_windows, 0, "agent"), probabilities=np.full((num_windows, 2), np.nan))
    summary = CallSummary(
        channel=1,
        role="customer",
        duration_s=3.0 * num_windows,
        num_segments=num_windows,
        num_scored=int(customer.scored.sum()),
        emotion="angry",
        confidence=0.75,
        means=(0.75, 0.25),
        shares=(0.5, 0.25),
        negativity=0.75,
        negativity_q=(0.5, None, 0.25, 1.0),
        trend="steady",
        escalated=False,
        abstained_share=0.25,
    )
    recording = Recording(index, f"call-{index}", f"/calls/{index}.wav", started_at=NOON)
    outcome = Outcome(recording, (summary,), (customer, agent), duration_s=3.0 * num_windows, scored_at=NOON)
    return dataclasses.replace(outcome, **changes)


def fault_of(index: int) -> Outcome:
    summary = CallSummary(status="unreadable", error="no such file")
    return Outcome(Recording(index, f"call-{index}", f"/calls/{index}.wav"), (summary,), scored_at=NOON)


# ------------------------------------------------------------------------------------------------- schemas


def test_segments_columns():
    assert " ".join(tables.segments_schema(LABELS).names) == (
        "call_id channel role segment start_s end_s kind voiced_s level_dbfs emotion confidence abstained "
        "p_angry p_neutral"
    )


def test_calls_columns():
    own = pa.schema([("team", pa.string()), ("ring_s", pa.int64())])
    assert " ".join(tables.calls_schema(LABELS, own).names) == (
        "call_id path channel role status error truncated started_at duration_s speech_s silence_s music_s tone_s "
        "noise_s voiced_s talk_share overtalk_s num_segments num_scored emotion confidence mean_angry mean_neutral "
        "share_angry share_neutral negativity negativity_q1 negativity_q2 negativity_q3 negativity_q4 trend "
        "trend_slope escalated escalation_s peak_emotion peak_start_s peak_score level_dbfs abstained_share "
        "team ring_s source_sha256 model model_sha256 settings_sha256 batchser_version scored_at"
    )


@pytest.mark.parametrize("schema", [tables.segments_schema(LABELS), tables.calls_schema(LABELS)], ids=["seg", "calls"])
def test_types_follow_the_names(schema: pa.Schema):
    dictionary = pa.dictionary(pa.int32(), pa.string())
    for column in schema:
        name = column.name
        if name.endswith("_s"):
            assert column.type == pa.float64(), name
        elif name.startswith(("p_", "mean_", "share_", "negativity", "confidence", "level")):
            assert column.type == pa.float32(), name
        elif name.endswith("_at"):
            assert column.type == pa.timestamp("us", tz="UTC"), name
        elif name.startswith("num_") or name == "segment":
            assert column.type == pa.int32(), name
        elif name in ("call_id", "role", "kind", "emotion", "status", "trend", "model", "source_sha256"):
            assert column.type == dictionary, name


def test_every_field_of_a_summary_has_a_column():
    names = set(tables.calls_schema(LABELS).names)
    fields = {field.name for field in dataclasses.fields(CallSummary)}
    assert fields - names == {"means", "shares", "negativity_q"}


def test_reserved_columns():
    reserved = tables.reserved_columns(LABELS)
    assert {"emotion", "mean_angry", "share_neutral", "model", "scored_at", "negativity_q4"} <= reserved
    assert not reserved & {"path", "call_id", "started_at", "team", "mean_happy"}


def test_metadata():
    segments = tables.with_metadata(tables.segments_table([], LABELS), "run-1", LABELS, PROVENANCE)
    metadata = segments.schema.metadata
    assert metadata[b"batchser.schema_version"] == b"1"
    assert metadata[b"batchser.run_id"] == b"run-1"
    assert json.loads(metadata[b"batchser.labels"]) == ["angry", "neutral"]
    assert json.loads(metadata[b"batchser.negative_labels"]) == ["angry"]
    assert json.loads(metadata[b"batchser.model"]) == {"name": "telephone", "sha256": "a" * 64}
    assert json.loads(metadata[b"batchser.settings"]) == {"roles": ["customer"]}
    schema = tables.with_metadata(tables.calls_schema(LABELS), "run-1", LABELS, PROVENANCE)
    assert schema.metadata == metadata


# ------------------------------------------------------------------------------------------------- segments


def test_segments_rows():
    frame = tables.segments_table([outcome_of(1, 9), fault_of(2), outcome_of(0, 2)], LABELS).to_pandas()
    assert frame["call_id"].tolist() == ["call-0"] * 4 + ["call-1"] * 18
    assert frame["channel"].tolist() == [0, 0, 1, 1] + [0] * 9 + [1] * 9
    assert frame["segment"].tolist() == [0, 1, 0, 1, *range(9), *range(9)]
    customer = frame.iloc[13:]
    assert customer["role"].unique().tolist() == ["customer"]
    assert customer["kind"].tolist()[:4] == ["silence", "speech", "music", "speech"]
    assert customer["end_s"].tolist() == [3.0 * n for n in range(1, 10)]
    assert customer["voiced_s"].tolist()[:2] == [0.25, 2.5]
    odd = customer.iloc[1::2]
    assert odd["p_angry"].tolist() == pytest.approx([0.85, 0.75, 0.65, 0.55])
    assert odd["emotion"].tolist() == ["angry"] * 4  # the last one abstains and still says what it leans to
    assert odd["abstained"].tolist() == [False, False, False, True]
    assert odd["confidence"].tolist() == pytest.approx(odd["p_angry"].tolist())


def test_not_scored_is_null_not_nan():
    segments = tables.segments_table([outcome_of(0, 9)], LABELS)
    for name in ("emotion", "confidence", "abstained", "p_angry", "p_neutral"):
        assert segments[name].null_count == 9 + 5, name
    segments.validate(full=True)


def test_a_channel_without_windows_has_no_rows():
    empty = dataclasses.replace(outcome_of(0), windows=(channel_of(0), channel_of(3, 1)))
    assert tables.segments_table([empty], LABELS)["channel"].to_pylist() == [1, 1, 1]


@pytest.mark.parametrize("outcomes", [[], [fault_of(0)]], ids=["none", "fault"])
def test_no_windows_keep_the_schema(outcomes: list[Outcome]):
    segments = tables.segments_table(outcomes, LABELS)
    assert segments.num_rows == 0
    assert segments.schema.equals(tables.segments_schema(LABELS))


def test_many_windows_are_quick():
    """No python per window: a million windows, 833 hours of one channel, take about half a second."""
    big = channel_of(1_000_000)
    started = time.process_time()
    segments = tables.segments_table([dataclasses.replace(outcome_of(0), windows=(big,))], LABELS)
    assert segments.num_rows == 1_000_000
    assert time.process_time() - started < 5


# ------------------------------------------------------------------------------------------------- calls


def test_calls_rows():
    two = outcome_of(1)
    other = dataclasses.replace(two.summaries[0], channel=0, role="mixed")
    two = dataclasses.replace(two, summaries=(two.summaries[0], other))
    outcomes = [fault_of(2), two, outcome_of(0, truncated=True, source_sha256="c" * 64)]
    calls = tables.calls_table(outcomes, LABELS, PROVENANCE)
    assert tables.row_indices(outcomes).tolist() == [0, 1, 1, 2]
    calls.validate(full=True)
    rows = calls.to_pylist()
    assert [(row["call_id"], row["channel"], row["status"]) for row in rows] == [
        ("call-0", 1, "ok"),
        ("call-1", 0, "ok"),
        ("call-1", 1, "ok"),
        ("call-2", None, "unreadable"),
    ]
    first, fault = rows[0], rows[3]
    assert (first["mean_angry"], first["share_neutral"], first["negativity_q1"]) == (0.75, 0.25, 0.5)
    assert first["negativity_q2"] is None
    assert (first["truncated"], rows[1]["truncated"]) == (True, False)
    assert (first["source_sha256"], first["model"], first["settings_sha256"]) == ("c" * 64, "telephone", "b" * 64)
    assert first["started_at"] == first["scored_at"] == NOON
    assert (fault["error"], fault["path"], fault["num_segments"]) == ("no such file", "/calls/2.wav", 0)
    assert fault["mean_angry"] is fault["duration_s"] is fault["started_at"] is None


def test_a_fault_keeps_the_duration_that_was_known():
    fault = dataclasses.replace(fault_of(0), duration_s=90_000.0)
    assert tables.calls_table([fault], LABELS, PROVENANCE)["duration_s"].to_pylist() == [90_000.0]


def test_times_become_utc():
    recording = Recording(0, "c", "/c.wav", started_at=NOON.astimezone(timezone(timedelta(hours=5))))
    calls = tables.calls_table([outcome_of(0, recording=recording)], LABELS, PROVENANCE)
    assert calls["started_at"].to_pylist() == [NOON]


def test_own_columns_keep_their_place_and_types():
    own = pa.table(
        {
            "team": pa.array(["north", None, "south"]),
            "ring_s": pa.array([1, 2, 3], pa.int16()),
            "tags": pa.array([["a"], [], None], pa.list_(pa.string())),
        }
    )
    calls = tables.calls_table([outcome_of(2), outcome_of(0)], LABELS, PROVENANCE)
    calls = tables.attach_own_columns(calls, np.array([0, 2]), own)
    assert calls.schema.equals(tables.calls_schema(LABELS, own.schema))
    assert calls.select(own.column_names).to_pylist() == [
        {"team": "north", "ring_s": 1, "tags": ["a"]},
        {"team": "south", "ring_s": 3, "tags": None},
    ]


def test_no_own_columns_change_nothing():
    calls = tables.calls_table([outcome_of(0)], LABELS, PROVENANCE)
    assert tables.attach_own_columns(calls, np.array([0]), pa.table({})).equals(calls)


def test_colliding_own_columns_are_all_named():
    own = pa.table([[1], [2], [3], [4]], names=["emotion", "team", "mean_angry", "team"])
    calls = tables.calls_table([outcome_of(0)], LABELS, PROVENANCE)
    with pytest.raises(ConfigError) as caught:
        tables.attach_own_columns(calls, np.array([0]), own)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "manifest column 'emotion'",
        "manifest column 'mean_angry'",
        "manifest column 'team'",
    ]


# ------------------------------------------------------------------------------------------------- tally


def test_tally_counts_recordings():
    half = dataclasses.replace(outcome_of(1).summaries[0], channel=0, status="no_speech", num_scored=0)
    mixed = dataclasses.replace(outcome_of(1), summaries=(half, outcome_of(1).summaries[0]))
    silent = dataclasses.replace(outcome_of(3), summaries=(half, dataclasses.replace(half, channel=1)))
    outcomes = [outcome_of(0), mixed, fault_of(2), silent]
    counts = tables.tally(tables.calls_table(outcomes, LABELS, PROVENANCE))
    assert counts == tables.Tally(4, {"unreadable": 1, "no_speech": 1, "ok": 2}, 81.0, 8)
    assert counts.by_status["ok"] == sum(outcome.status == "ok" for outcome in outcomes)
    assert tables.tally(tables.calls_table([], LABELS, PROVENANCE)) == tables.Tally(0, {}, 0.0, 0)


# ------------------------------------------------------------------------------------------------- pandas


def test_pandas_reads_what_was_written():
    outcomes = [outcome_of(0), fault_of(1)]
    for table in (tables.segments_table(outcomes, LABELS), tables.calls_table(outcomes, LABELS, PROVENANCE)):
        file = io.BytesIO()
        pq.write_table(table, file)
        assert pq.read_table(file).equals(table)
        frame = pd.read_parquet(file)
        assert frame.columns.tolist() == table.column_names
        assert frame.index.tolist() == list(range(table.num_rows))
        assert isinstance(frame["call_id"].dtype, pd.CategoricalDtype)


def test_all_null_columns_keep_their_types():
    file = io.BytesIO()
    pq.write_table(tables.calls_table([fault_of(0)], LABELS, PROVENANCE), file)
    assert pq.read_schema(file).equals(tables.calls_schema(LABELS))
    frame = pd.read_parquet(file)
    assert frame["mean_angry"].dtype == np.float32
    assert str(frame["started_at"].dtype) == "datetime64[us, UTC]"
