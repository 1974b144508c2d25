"""Each stage of the job by itself: one thread, in this process, on the benchmark's calls.

The order and the sizes of batches are those of batchser/pipeline.py; only the clock between the stages is ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from material import ROLES

from batchser import __version__, audio, gate, pipeline, summary
from batchser.bundle import find_bundle
from batchser.features import extract, frames_inside, log_mel
from batchser.records import SPEECH, Outcome, Recording, WindowBatch
from batchser.scoring import BatchScorer, load_model
from batchser.settings import RunSettings
from batchser.sink import PartSink
from batchser.sink.store import LocalStore
from batchser.tables import Provenance
from batchser.windows import cut_windows

if TYPE_CHECKING:
    from batchser.scoring import Model

#: The quickest of so many passes counts: what else the machine does only ever adds.
PASSES: Final = 3
_SCORED_CHANNEL: Final = ROLES.index("customer")
_SIZES: Final = pipeline.BatchSizes()


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage took for ``audio_s`` seconds of recordings; ``num_windows`` are those that it works on."""

    name: str
    seconds: float
    num_windows: int
    audio_s: float


@dataclass(slots=True)
class _Clock:
    """Adds up seconds and windows by stage, in the order in which stages first come."""

    seconds: dict[str, float] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def at(self, name: str, num_windows: int = 0) -> Iterator[None]:
        """Count what runs inside as stage ``name``."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.windows[name] = self.windows.get(name, 0) + num_windows


def measure_stages(calls: Sequence[Path], model_name: str, work: Path) -> list[Stage]:
    """Walk through all stages PASSES times; the last Stage is the pipeline itself, nothing taken apart."""
    bundle = find_bundle(model_name, ())
    assert bundle.folder is not None
    model = load_model(bundle.folder, bundle.sha256, 1)
    recordings = [Recording(k, path.stem, str(path), ROLES) for k, path in enumerate(calls)]
    outcomes = list(pipeline.score_recordings(recordings, model, RunSettings()))  # warms all up, too
    num_windows = sum(len(scores.kind) for outcome in outcomes for scores in outcome.windows)
    passes = []
    for _ in range(PASSES):
        clock = _Clock()
        _analyse(recordings, model, clock, num_windows)
        _write(outcomes, model, clock, work, num_windows)
        with clock.at("pipeline and tables as a whole", num_windows):
            again = list(pipeline.score_recordings(recordings, model, RunSettings()))
            _write(again, model, _Clock(), work, num_windows)
        passes.append(clock)
    audio_s = sum(outcome.duration_s or 0.0 for outcome in outcomes)
    return [
        Stage(name, min(clock.seconds[name] for clock in passes), passes[0].windows[name], audio_s)
        for name in passes[0].seconds
    ]


def _analyse(recordings: Sequence[Recording], model: Model, clock: _Clock, num_windows: int) -> None:
    """From files to scores."""
    features = model.bundle.features
    limits = RunSettings().limits
    scorer = BatchScorer(model, _SIZES.score_windows)
    for recording in recordings:
        share = num_windows // len(recordings)
        with audio.open_source(recording) as source:
            with clock.at("hash", share):
                source.sha256()
            with clock.at("decode", share):
                audio.channels_carry_same_signal(recording, limits, source)
                with audio.open_audio(recording, features.rate_hz, limits, _SIZES.block_s, source) as reader:
                    blocks = list(reader)
        with clock.at("windows", share):
            batches = list(cut_windows(blocks, features.window_samples, _SIZES.gate_windows))
        for batch in batches:
            _gate_and_score(batch, scorer, clock)
    with clock.at("scoring"):
        scorer.flush()


def _gate_and_score(batch: WindowBatch, scorer: BatchScorer, clock: _Clock) -> None:
    model = scorer.model
    settings = model.bundle.features
    num_channels, num_windows, _ = batch.samples.shape
    flat = batch.samples.reshape(num_channels * num_windows, -1)
    num_samples = np.tile(batch.num_samples, num_channels)
    num_frames = frames_inside(num_samples, settings)
    length_s = num_samples / settings.rate_hz
    with clock.at("features", len(flat)):
        mel_db = np.empty((*batch.samples.shape[:2], settings.num_frames, settings.num_mels), np.float32)
        for channel, samples in enumerate(batch.samples):
            if channel == _SCORED_CHANNEL:
                features = extract(samples, settings)
                mel_db[channel] = features.mel_db
            else:
                mel_db[channel] = log_mel(samples, settings)
    with clock.at("gate", len(flat)):
        level = gate.level_dbfs(flat, num_samples)
        chunks = model.gate(mel_db.reshape(len(flat), *mel_db.shape[2:]), num_frames)
        gated = gate.decide(chunks, num_frames, length_s, level, model.bundle.gate)
        voiced = gated.voiced.reshape(num_channels, num_windows, -1)
        gate.overtalk_s(voiced, num_frames[:num_windows], length_s[:num_windows], model.bundle.gate)
    rows = np.flatnonzero(gated.kind.reshape(num_channels, num_windows)[_SCORED_CHANNEL] == SPEECH)
    target = np.empty((num_windows, len(model.bundle.labels)), np.float32)
    with clock.at("scoring", len(rows)):
        scorer.submit(features.stack[rows], num_frames[rows], target, rows)


def _write(outcomes: Sequence[Outcome], model: Model, clock: _Clock, work: Path, num_windows: int) -> None:
    """From scores to a Parquet part."""
    bundle, settings = model.bundle, RunSettings()
    with clock.at("summaries and tables", num_windows):
        for outcome in outcomes:
            summary.summarise(
                outcome.windows, [_SCORED_CHANNEL], bundle.labels, bundle.negative_labels, settings.summary,
                duration_s=outcome.duration_s or 0.0, min_duration_s=settings.min_duration_s,
            )  # fmt: skip
        provenance = Provenance(bundle.name, bundle.sha256, settings.fingerprint(), __version__)
        PartSink(LocalStore(work.parent), work.name, "bench", bundle.labels, provenance).write(outcomes)
