"""The two tables: one explicit pyarrow schema each, and outcomes → Tables.

``segments`` has one row per window of every channel, ``calls`` one per call and scored channel (DESIGN.md, "Tables").
Rows stand in manifest order, then channel, then segment. Times are float64 seconds, scores float32; ids, kinds, roles,
emotions and statuses are dictionary-encoded strings. There is no index column.

Null has one meaning: there is no such value. In ``segments`` the emotion, ``confidence``, ``abstained`` and
``p_<label>`` are null where a window was not scored (it is not speech, or nobody scores its role); a window that was
scored and abstains keeps its emotion and says ``abstained``. A manifest's own columns keep their types and stand in
``calls`` between ``abstained_share`` and ``source_sha256``.

The schema's metadata hold ``batchser.schema_version``, ``batchser.run_id`` and, as JSON, ``batchser.labels``,
``batchser.negative_labels``, ``batchser.model`` (name and sha256) and ``batchser.settings``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchser.errors import ConfigError
from batchser.records import KINDS, STATUSES, CallSummary, Outcome, WindowScores

#: Raised whenever a column is renamed, removed, or changes its type or meaning.
SCHEMA_VERSION: Final = 1

_SECONDS: Final = pa.float64()
_SCORE: Final = pa.float32()
_COUNT: Final = pa.int32()
_NAME: Final = pa.dictionary(pa.int32(), pa.string())
_TIME: Final = pa.timestamp("us", tz="UTC")

#: The calls table's columns that a manifest may give: it knows them, so they are no columns of its own.
_MANIFEST_GIVES: Final = frozenset({"call_id", "path", "started_at"})

#: The partitions of a dataset, which readers see as a column.
_RESERVED: Final = frozenset({"call_date"})
#: Columns of ours in work in progress begin so.
OUR_PREFIX: Final = "batchser:"

_TableOrSchema = TypeVar("_TableOrSchema", pa.Table, pa.Schema)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What scored a run's rows: columns of every calls row, and the tables' metadata.

    ``settings`` are the run's settings as JSON-able values; ``settings_sha256`` is their fingerprint.
    ``negative_labels`` are those that ``negativity`` sums up.
    """

    model: str
    model_sha256: str
    settings_sha256: str
    batchser_version: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    negative_labels: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Tally:
    """What a calls table holds, counted by recording (not by row)."""

    recordings: int
    by_status: dict[str, int]
    audio_s: float
    scored_windows: int


# ----------------------------------------------------------------------------------------------------- schemas


def segments_schema(labels: Sequence[str]) -> pa.Schema:
    """Return the schema of the segments table for a bundle's labels."""
    return pa.schema(
        [
            pa.field("call_id", _NAME, nullable=False),
            pa.field("channel", pa.int8(), nullable=False),
            pa.field("role", _NAME, nullable=False),
            pa.field("segment", _COUNT, nullable=False),
            pa.field("start_s", _SECONDS, nullable=False),
            pa.field("end_s", _SECONDS, nullable=False),
            pa.field("kind", _NAME, nullable=False),
            pa.field("voiced_s", _SECONDS, nullable=False),
            pa.field("level_dbfs", _SCORE, nullable=False),
            pa.field("emotion", _NAME),
            pa.field("confidence", _SCORE),
            pa.field("abstained", pa.bool_()),
            *(pa.field(f"p_{label}", _SCORE) for label in labels),
        ]
    )


def calls_schema(labels: Sequence[str], own_columns: pa.Schema | None = None) -> pa.Schema:
    """Return the schema of the calls table for a bundle's labels and a manifest's own columns."""
    return pa.schema([*_result_fields(labels), *(own_columns or ()), *_provenance_fields()])


def reserved_columns(labels: Sequence[str] = ()) -> frozenset[str]:
    """Return the names that a manifest's own column must not have (``path`` and the like are no own columns)."""
    return frozenset(calls_schema(labels).names) - _MANIFEST_GIVES | _RESERVED


def check_own_columns(names: Iterable[str], labels: Sequence[str]) -> None:
    """Raise ConfigError that names every own column which collides with one of ours or with another."""
    names = list(names)
    taken = set(calls_schema(labels).names) | _RESERVED
    faults = [
        f"manifest column {name!r}: the calls table has a column of that name itself; rename it in the manifest"
        for name in names
        if name in taken or name.startswith(OUR_PREFIX)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    faults += [f"manifest column {name!r}: stands there twice; rename or remove one" for name in twice]
    if faults:
        raise ConfigError(faults)


def with_metadata(target: _TableOrSchema, run_id: str, labels: Sequence[str], provenance: Provenance) -> _TableOrSchema:
    """Return a table or schema with the metadata of a run."""
    texts = {
        "batchser.schema_version": str(SCHEMA_VERSION),
        "batchser.run_id": run_id,
        "batchser.labels": json.dumps(list(labels), ensure_ascii=False),
        "batchser.negative_labels": json.dumps(list(provenance.negative_labels), ensure_ascii=False),
        "batchser.model": json.dumps({"name": provenance.model, "sha256": provenance.model_sha256}, ensure_ascii=False),
        "batchser.settings": json.dumps(dict(provenance.settings), sort_keys=True, ensure_ascii=False),
    }
    schema = target if isinstance(target, pa.Schema) else target.schema
    kept = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    changed: _TableOrSchema
    if isinstance(target, pa.Schema):
        changed = target.with_metadata(kept | texts)
    else:
        changed = target.replace_schema_metadata(kept | texts)
    return changed


def _result_fields(labels: Sequence[str]) -> list[pa.Field]:
    """Return the columns of the calls table that stand before the manifest's own."""
    return [
        pa.field("call_id", _NAME, nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("channel", pa.int8()),
        pa.field("role", _NAME),
        pa.field("status", _NAME, nullable=False),
        pa.field("error", pa.string()),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("started_at", _TIME),
        pa.field("duration_s", _SECONDS),
        *(pa.field(f"{kind}_s", _SECONDS) for kind in KINDS),
        pa.field("voiced_s", _SECONDS),
        pa.field("talk_share", _SCORE),
        pa.field("overtalk_s", _SECONDS),
        pa.field("num_segments", _COUNT, nullable=False),
        pa.field("num_scored", _COUNT, nullable=False),
        pa.field("emotion", _NAME),
        pa.field("confidence", _SCORE),
        *(pa.field(f"mean_{label}", _SCORE) for label in labels),
        *(pa.field(f"share_{label}", _SCORE) for label in labels),
        pa.field("negativity", _SCORE),
        *(pa.field(f"negativity_q{quarter}", _SCORE) for quarter in (1, 2, 3, 4)),
        pa.field("trend", _NAME),
        pa.field("trend_slope", _SCORE),
        pa.field("escalated", pa.bool_()),
        pa.field("escalation_s", _SECONDS),
        pa.field("peak_emotion", _NAME),
        pa.field("peak_start_s", _SECONDS),
        pa.field("peak_score", _SCORE),
        pa.field("level_dbfs", _SCORE),
        pa.field("abstained_share", _SCORE),
    ]


def _provenance_fields() -> list[pa.Field]:
    """Return the columns of the calls table that stand after the manifest's own."""
    return [
        pa.field("source_sha256", _NAME),
        pa.field("model", _NAME, nullable=False),
        pa.field("model_sha256", _NAME, nullable=False),
        pa.field("settings_sha256", _NAME, nullable=False),
        pa.field("batchser_version", _NAME, nullable=False),
        pa.field("scored_at", _TIME),
    ]


# ----------------------------------------------------------------------------------------------------- segments


def segments_table(outcomes: Sequence[Outcome], labels: Sequence[str]) -> pa.Table:
    """Build the segments rows of some recordings; python touches channels, numpy the windows.

    Parameters
    ----------
    outcomes : recordings, each with all its windows; the rows come in the order of ``recording.index``
    labels : the bundle's, in the order of ``WindowScores.probabilities``
    """
    parts = [
        (outcome.recording.call_id, scores)
        for outcome in in_order(outcomes)
        for scores in sorted(outcome.windows, key=lambda scores: scores.channel)
    ]
    schema = segments_schema(labels)
    if not parts:
        return schema.empty_table()
    channels = [scores for _, scores in parts]
    lengths = np.array([len(scores.kind) for scores in channels], np.int64)  # (channels,)
    columns: list[pa.Array] = [
        _names([call_id for call_id, _ in parts], lengths),
        pa.array(np.repeat(np.array([scores.channel for scores in channels], np.int8), lengths)),
        _names([scores.role for scores in channels], lengths),
        pa.array(np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])),
        _joined([scores.start_s for scores in channels], np.float64),
        _joined([scores.end_s for scores in channels], np.float64),
        _encoded(np.concatenate([scores.kind for scores in channels]), KINDS),
        _joined([scores.voiced_s for scores in channels], np.float64),
        _joined([scores.level_dbfs for scores in channels], np.float32),
        *_score_columns(channels, labels),
    ]
    return pa.table(columns, schema=schema)


def _score_columns(channels: Sequence[WindowScores], labels: Sequence[str]) -> list[pa.Array]:
    """Return emotion, confidence, abstained and p_<label>…, null where a window was not scored."""
    probabilities = np.concatenate([scores.probabilities for scores in channels])  # float32 (n, L)
    unscored = ~np.concatenate([scores.scored for scores in channels])  # bool (n,)
    # A row of NaN has no largest value: it gets label 0 here, and null below.
    best = np.where(unscored[:, None], np.float32(0), probabilities).argmax(axis=1)
    confidence = np.concatenate([scores.confidence for scores in channels]).astype(np.float32)
    abstained = np.concatenate([scores.abstained for scores in channels])
    return [
        _encoded(best, labels, unscored),
        pa.array(confidence, mask=unscored),
        pa.array(abstained, mask=unscored),
        *(
            pa.array(np.ascontiguousarray(probabilities[:, column], np.float32), mask=unscored)
            for column in range(len(labels))
        ),
    ]


def _names(names: Sequence[str], repeats: npt.NDArray[np.int64]) -> pa.DictionaryArray:
    """Dictionary-encode each name as often as ``repeats`` says, without making the strings: (channels,) → (n,)."""
    codes = {name: code for code, name in enumerate(dict.fromkeys(names))}
    return _encoded(np.repeat(np.array([codes[name] for name in names], np.int32), repeats), list(codes))


def _encoded(
    codes: npt.NDArray[Any], names: Sequence[str], mask: npt.NDArray[np.bool_] | None = None
) -> pa.DictionaryArray:
    """Dictionary-encode indices into ``names``, integer (n,); null where ``mask`` is True."""
    indices = pa.array(codes.astype(np.int32), mask=mask)
    return pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.string()))


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: type) -> pa.Array:
    """Join a column's pieces, each (windows of a channel,)."""
    return pa.array(np.concatenate(arrays).astype(dtype, copy=False))


# ----------------------------------------------------------------------------------------------------- calls


def in_order(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return outcomes in manifest order."""
    return sorted(outcomes, key=lambda outcome: outcome.recording.index)


def calls_table(outcomes: Sequence[Outcome], labels: Sequence[str], provenance: Provenance) -> pa.Table:
    """Build the calls rows of some recordings, without the manifest's own columns (see ``attach_own_columns``).

    The rows come in the order of ``recording.index``, those of a recording in the order of their channels; row k
    belongs to the recording that ``row_indices(outcomes)[k]`` names.
    """
    rows = [
        _call_row(outcome, summary, labels, provenance)
        for outcome in in_order(outcomes)
        for summary in _by_channel(outcome)
    ]
    return pa.Table.from_pylist(rows, schema=calls_schema(labels))


def row_indices(outcomes: Sequence[Outcome]) -> npt.NDArray[np.int64]:
    """Return the recording's index of each row of ``calls_table(outcomes, …)``, int64 (rows,)."""
    ordered = in_order(outcomes)
    indices = np.array([outcome.recording.index for outcome in ordered], np.int64)
    return np.repeat(indices, [len(outcome.summaries) for outcome in ordered])


def attach_own_columns(calls: pa.Table, indices: npt.NDArray[np.int64], own: pa.Table) -> pa.Table:
    """Put the manifest's own columns into their place, with their types.

    Parameters
    ----------
    calls : rows without own columns
    indices : which row of ``own`` belongs to each row of ``calls``, int64 (rows,)
    own : one row per recording, in manifest order

    Raises
    ------
    ConfigError : an own column has the name of one of ours
    """
    end = calls.schema.get_field_index("source_sha256")
    check_own_columns(own.column_names, _labels_of(calls.schema))
    if not own.num_columns:
        return calls  # a table without columns cannot be taken from
    chosen = own.take(pa.array(indices))
    fields = [calls.schema.field(position) for position in range(len(calls.schema))]
    columns = calls.columns
    schema = pa.schema([*fields[:end], *own.schema, *fields[end:]], metadata=calls.schema.metadata)
    return pa.table([*columns[:end], *chosen.columns, *columns[end:]], schema=schema)


def by_recording(calls: pa.Table) -> pa.Table:
    """Make one row per recording of a calls table, in the order of their first rows.

    One ``ok`` channel makes a recording ok, else the first status of STATUSES counts; ``num_scored`` is of all its
    channels; other columns are as its first row has them. Needs the columns call_id, status and num_scored.
    """
    precedence = ("ok", *(status for status in STATUSES if status != "ok"))
    ranks = {status: number for number, status in enumerate(precedence)}
    call_ids = calls["call_id"].unify_dictionaries().combine_chunks()
    _, first, recording = np.unique(
        np.asarray(call_ids.indices if len(call_ids) else [], np.int64), return_index=True, return_inverse=True
    )
    rank = np.full(len(first), len(precedence))
    np.minimum.at(rank, recording, [ranks[status] for status in calls["status"].to_pylist()])
    num_scored = np.zeros(len(first), np.int64)
    np.add.at(num_scored, recording, np.asarray(calls["num_scored"], np.int64))
    order = np.argsort(first)
    rows = calls.take(pa.array(first[order]))
    for name, values in (
        ("status", pa.array([precedence[number] for number in rank[order]], pa.string())),
        ("num_scored", pa.array(num_scored[order])),
    ):
        rows = rows.set_column(rows.column_names.index(name), name, values)
    return rows


def tally(calls: pa.Table) -> Tally:
    """Count a calls table by recording; needs the columns call_id, status, duration_s and num_scored."""
    return tally_recordings(by_recording(calls))


def tally_recordings(rows: pa.Table) -> Tally:
    """Count rows that are one a recording (``by_recording``), with status, duration_s and num_scored."""
    counts = Counter(rows["status"].to_pylist())
    return Tally(
        recordings=rows.num_rows,
        by_status={status: counts[status] for status in STATUSES if counts[status]},
        audio_s=float(np.asarray(rows["duration_s"].fill_null(0.0), np.float64).sum()),
        scored_windows=int(np.asarray(rows["num_scored"], np.int64).sum()),
    )


def own_schema(schema: pa.Schema) -> pa.Schema:
    """Return the manifest's own columns of a calls schema."""
    first, end = (schema.get_field_index(name) for name in ("abstained_share", "source_sha256"))
    return pa.schema([schema.field(position) for position in range(first + 1, end)])


def _labels_of(schema: pa.Schema) -> list[str]:
    """Read the labels back from a calls schema."""
    return [name.removeprefix("mean_") for name in schema.names if name.startswith("mean_")]


def _by_channel(outcome: Outcome) -> list[CallSummary]:
    """Return a recording's summaries in the order of their channels."""
    return sorted(outcome.summaries, key=lambda summary: -1 if summary.channel is None else summary.channel)


def _call_row(
    outcome: Outcome, summary: CallSummary, labels: Collection[str], provenance: Provenance
) -> dict[str, Any]:
    """Return one row of the calls table by column; what is missing becomes null."""
    recording = outcome.recording
    row = {name: getattr(summary, name) for name in _SAME_NAMES}
    # A recording can be known to last so long though none of it could be used.
    row["duration_s"] = outcome.duration_s if summary.duration_s is None else summary.duration_s
    row |= zip((f"mean_{label}" for label in labels), summary.means or (), strict=False)
    row |= zip((f"share_{label}" for label in labels), summary.shares or (), strict=False)
    row |= zip((f"negativity_q{quarter}" for quarter in (1, 2, 3, 4)), summary.negativity_q, strict=True)
    return row | {
        "call_id": recording.call_id,
        "path": recording.path,
        "started_at": recording.started_at,
        "truncated": outcome.truncated,
        "source_sha256": outcome.source_sha256,
        "model": provenance.model,
        "model_sha256": provenance.model_sha256,
        "settings_sha256": provenance.settings_sha256,
        "batchser_version": provenance.batchser_version,
        "scored_at": outcome.scored_at,
    }


#: Columns that are a field of CallSummary under the same name.
_SAME_NAMES: Final = tuple(
    name for name in calls_schema(()).names if name in CallSummary.__dataclass_fields__ and name != "duration_s"
)
