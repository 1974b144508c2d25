"""Results as a run leaves them, generated: any number of calls, with nights, faults and hostile names if asked for."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchser import tables

LABELS = ("angry", "disgust", "fearful", "happy", "neutral", "sad")
NEGATIVE = ("angry", "disgust", "fearful", "sad")
PROVENANCE = tables.Provenance("telephone-6", "a" * 64, "b" * 64, "0.1.0", {"roles": ["customer"]}, NEGATIVE)
FIRST_DAY = datetime(2026, 11, 2, 7, 0, tzinfo=UTC)
_QUEUES = ("billing", "sales", "support")
_WINDOW_S = 3.0


def write_results(
    out: Path, num_calls: int, *, windows: int = 6, nights: int = 1, faults: int = 0, names: tuple[str, ...] = (),
    seed: int = 0,
) -> Path:  # fmt: skip
    """Write OUT, a file or (without .parquet) a dataset: stereo calls, their customers scored, but the last ``faults``.

    ``names`` are the first calls' ids, and their queues.
    """
    calls, segments = _tables(np.random.default_rng(seed), num_calls, windows, nights, faults, names)
    if out.suffix == ".parquet":
        _write(segments, out.with_name(f"{out.stem}.segments.parquet"))
        _write(calls, out)
        return out
    state = out / "_batchser" / "dataset.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"schema_version": 1, "labels": LABELS}))
    day_of_call = pc.strftime(calls["started_at"], "%Y-%m-%d").combine_chunks()
    day_of_segment = day_of_call.take(pa.array(np.arange(num_calls).repeat(_rows_of(num_calls, windows, faults))))
    for day in day_of_call.unique().to_pylist():
        for kind, table, days in (("calls", calls, day_of_call), ("segments", segments, day_of_segment)):
            folder = out / kind / f"call_date={day}"
            folder.mkdir(parents=True)
            _write(table.filter(pc.equal(days, day)), folder / f"{kind}.parquet")
    return out


def _write(table: pa.Table, path: Path) -> None:
    table = tables.with_metadata(table, "run-1", LABELS, PROVENANCE)
    pq.write_table(table, path, compression="zstd", row_group_size=2**17)


def _rows_of(num_calls: int, windows: int, faults: int) -> np.ndarray:
    return np.where(np.arange(num_calls) < num_calls - faults, 2 * windows, 0)


def _tables(rng: np.random.Generator, n: int, windows: int, nights: int, faults: int, names: tuple[str, ...]):
    good = n - faults
    ids = [*names, *(f"call-{number:06}" for number in range(n))][:n]
    queues = [*names, *rng.choice(_QUEUES, n)][:n]
    started = [FIRST_DAY + timedelta(days=k * nights // max(n, 1), seconds=60 * (k % 600)) for k in range(n)]
    # (good calls, windows, labels): calls lean to one emotion each
    lean = rng.dirichlet(np.full(len(LABELS), 0.7), good)[:, None]
    p = 0.6 * lean + 0.4 * rng.dirichlet(np.ones(len(LABELS)), (good, windows))
    p = p.astype(np.float32)
    scored = np.ones((good, windows), bool)
    best, confidence = p.argmax(2), p.max(2)
    abstained = confidence < 0.4
    negative = p[..., [LABELS.index(label) for label in NEGATIVE]].sum(2)
    voiced = np.full((good, windows), 2.0)
    calls = {
        "call_id": ids,
        "path": [f"/recordings/{number}.wav" for number in range(n)],
        "channel": [1] * good + [None] * faults,
        "role": ["customer"] * good + [None] * faults,
        "status": ["ok"] * good + ["unreadable"] * faults,
        "error": [None] * good + [f"the file is empty ({k % 3} bytes), expected a recording" for k in range(faults)],
        "truncated": [False] * n,
        "started_at": started,
        "duration_s": [windows * _WINDOW_S] * good + [None] * faults,
        "speech_s": [windows * _WINDOW_S] * good + [None] * faults,
        "voiced_s": [*voiced.sum(1), *[None] * faults],
        "talk_share": [*rng.uniform(0.2, 0.8, good), *[None] * faults],
        "overtalk_s": [*rng.uniform(0, 2, good), *[None] * faults],
        "num_segments": [windows] * good + [0] * faults,
        "num_scored": [windows] * good + [0] * faults,
        "emotion": [*np.array(LABELS)[p.mean(1).argmax(1)], *[None] * faults] if good else [None] * faults,
        "confidence": [*p.mean(1).max(1), *[None] * faults],
        "negativity": [*negative.mean(1), *[None] * faults],
        "trend": [*rng.choice(["steady", "worsening", "improving"], good, p=[0.8, 0.1, 0.1]), *[None] * faults],
        "escalated": [*(rng.random(good) < 0.05).tolist(), *[None] * faults],
        "escalation_s": [3.0] * good + [None] * faults,
        "peak_emotion": ["angry"] * good + [None] * faults,
        "peak_start_s": [*(negative.argmax(1) * _WINDOW_S), *[None] * faults] if good else [None] * faults,
        "peak_score": [*negative.max(1), *[None] * faults] if good else [None] * faults,
        "abstained_share": [*abstained.mean(1), *[None] * faults],
        "queue": queues,
        "agent_group": [*rng.choice(["north", "south"], n)],
        "model": ["telephone-6"] * n,
        "model_sha256": ["a" * 64] * n,
        "settings_sha256": ["b" * 64] * n,
        "batchser_version": ["0.1.0"] * n,
        "scored_at": [FIRST_DAY + timedelta(days=nights)] * n,
    }
    for number, label in enumerate(LABELS):
        says = (best == number) & ~abstained
        calls[f"mean_{label}"] = [*p[..., number].mean(1), *[None] * faults]
        calls[f"share_{label}"] = [*says.mean(1), *[None] * faults]
    own = pa.schema([("queue", pa.string()), ("agent_group", pa.string())])
    schema = tables.calls_schema(LABELS, own)
    columns = [pa.array(calls.get(field.name, [None] * n), _plain(field.type)).cast(field.type) for field in schema]
    return pa.table(columns, schema=schema), _segments(ids[:good], p, scored, best, confidence, abstained, voiced)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _segments(ids, p, scored, best, confidence, abstained, voiced) -> pa.Table:
    """Two channels a call: the agent's, which is not scored, then the customer's."""
    good, windows, _ = p.shape
    number = np.tile(np.arange(windows, dtype=np.int32), 2 * good)
    customer = np.tile(np.repeat([False, True], windows), good)

    def both(values: np.ndarray) -> np.ndarray:  # (good, windows) → rows
        return np.concatenate([np.zeros_like(values), values], axis=1).ravel()

    def name(codes: np.ndarray, words, mask=None) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32), mask=mask), pa.array(words, pa.string()))

    schema = tables.segments_schema(LABELS)
    columns = [
        name(np.repeat(np.arange(good), 2 * windows), ids),
        pa.array(customer.astype(np.int8)),
        name(customer.astype(int), ["agent", "customer"]),
        pa.array(number),
        pa.array(number * _WINDOW_S),
        pa.array((number + 1) * _WINDOW_S),
        name(np.zeros(len(number)), ["speech"]),
        pa.array(both(voiced)),
        pa.array(np.full(len(number), -20, np.float32)),
        name(both(best), LABELS, ~customer),
        pa.array(both(confidence).astype(np.float32), mask=~customer),
        pa.array(both(abstained), mask=~customer),
        *(pa.array(both(p[..., k]).astype(np.float32), mask=~customer) for k in range(len(LABELS))),
    ]
    return pa.table(columns, schema=schema)
