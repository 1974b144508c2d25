"""The story of a recording: decode → windows → features → gate → score → summary. No Dask here.

``score_recordings`` takes many, because windows are scored in batches gathered across recordings; what comes out for
one recording does not depend on its neighbours.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from batchser import audio, gate, summary
from batchser.bundle import find_bundle
from batchser.errors import AudioError, ConfigError
from batchser.features import extract, frames_inside, log_mel
from batchser.records import (
    ROLES,
    SPEECH,
    AudioBlock,
    FloatArray,
    IntArray,
    Outcome,
    Recording,
    WindowBatch,
    WindowScores,
)
from batchser.scoring import BatchScorer, Model, load_model
from batchser.settings import AUTO_ENGINE, DEFAULT_MODEL, RunSettings
from batchser.windows import cut_windows, window_bounds_s

if TYPE_CHECKING:
    import pandas as pd

_LOG = logging.getLogger(__name__)
ALL_ROLES: Final = "all"


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """How much is in memory at once. Results do not depend on it beyond 1e-5 in a score."""

    block_s: float = 30.0
    gate_windows: int = 32
    score_windows: int = 256


class StageClock:
    """Adds up the seconds that each stage takes: ``seconds`` by its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """Count what happens inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


@dataclass(slots=True)
class _Windows:
    """One batch of windows of all channels (C, B), its probabilities float32 (C, B, L) filled in later."""

    kind: np.ndarray
    voiced_s: np.ndarray
    overtalk_s: np.ndarray
    level_dbfs: FloatArray
    probabilities: FloatArray


@dataclass(slots=True)
class _Analysis:
    """A recording on its way: gated, its speech windows queued for scoring up to number ``last_window``."""

    recording: Recording
    roles: tuple[str, ...] = ()
    batches: list[_Windows] = field(default_factory=list)
    num_samples: int = 0
    truncated: bool = False
    source_sha256: str | None = None
    last_window: int = 0
    fault: tuple[str, str] | None = None  # status, sentence


def score_recordings(
    recordings: Iterable[Recording],
    model: Model,
    settings: RunSettings,
    sizes: BatchSizes | None = None,
    clock: StageClock | None = None,
) -> Iterator[Outcome]:
    """Score recordings one after another and yield one Outcome each, in order.

    A recording that cannot be read, or fails otherwise, is an Outcome with a status; the loop goes on. ``clock`` counts
    the seconds of ``decode``, ``features`` (with the gate), ``scoring`` and ``summary``.
    """
    sizes, clock = sizes or BatchSizes(), clock or StageClock()
    scorer = BatchScorer(model, sizes.score_windows)
    waiting: deque[_Analysis] = deque()
    for recording in recordings:
        waiting.append(_analyse(recording, scorer, settings, sizes, clock))
        while waiting and waiting[0].last_window <= scorer.num_scored:
            yield _outcome(waiting.popleft(), model, settings, clock)
    with clock.at("scoring"):
        scorer.flush()
    for analysis in waiting:
        yield _outcome(analysis, model, settings, clock)


def _analyse(
    recording: Recording, scorer: BatchScorer, settings: RunSettings, sizes: BatchSizes, clock: StageClock
) -> _Analysis:
    """Decode, gate and queue one recording; faults become a status here, and nowhere else."""
    analysis = _Analysis(recording)
    try:
        with audio.open_source(recording, settings.limits.trust) as source:  # once: it may be far away
            with clock.at("decode"):
                analysis.source_sha256 = source.sha256()
            _gate_and_queue(analysis, source, scorer, settings, sizes, clock)
    except AudioError as error:
        analysis.fault = ("unreadable", str(error))
    except Exception as error:
        analysis.fault = _unexpected(recording, error)
    return analysis


def _unexpected(recording: Recording, error: Exception) -> tuple[str, str]:
    """The task's edge: whatever else a recording does must cost its own row only, and be told in the log."""
    _LOG.exception("%s: an unexpected error; its row has status 'failed'", recording.call_id)
    return "failed", f"unexpected {type(error).__name__}: {error}; see the log, and please report it"


def _gate_and_queue(
    analysis: _Analysis,
    source: audio.Source,
    scorer: BatchScorer,
    settings: RunSettings,
    sizes: BatchSizes,
    clock: StageClock,
) -> None:
    features = scorer.model.bundle.features
    recording = analysis.recording
    with clock.at("decode"):
        same = audio.channels_carry_same_signal(recording, settings.limits, source)
    with audio.open_audio(recording, features.rate_hz, settings.limits, sizes.block_s, source) as reader:
        analysis.roles = channel_roles(recording, reader.num_channels, settings, same_signal=same)
        scored = scored_channels(analysis.roles, settings)
        blocks = (AudioBlock(b.start_samples, b.samples[: len(analysis.roles)]) for b in reader)
        batches = cut_windows(blocks, features.window_samples, sizes.gate_windows)
        while True:
            with clock.at("decode"):
                batch = next(batches, None)
            if batch is None:
                break
            analysis.batches.append(_gate_batch(analysis, batch, scored, scorer, clock))
            analysis.num_samples += int(batch.num_samples.sum())
        analysis.truncated = reader.truncated


def _gate_batch(
    analysis: _Analysis, batch: WindowBatch, scored: Sequence[int], scorer: BatchScorer, clock: StageClock
) -> _Windows:
    """Gate one batch (C, B, N) and queue the speech windows of the scored channels."""
    with clock.at("features"):
        windows, stacks, num_frames = _gated(batch, scored, scorer.model)
    settings = scorer.model.bundle.features
    for channel in scored:
        rows = np.flatnonzero(windows.kind[channel] == SPEECH)
        with clock.at("features"):
            known = stacks.get(channel)
            stack = extract(batch.samples[channel, rows], settings).stack if known is None else known[rows]
        with clock.at("scoring"):
            analysis.last_window = scorer.submit(stack, num_frames[rows], windows.probabilities[channel], rows)
    return windows


def _gated(batch: WindowBatch, scored: Sequence[int], model: Model) -> tuple[_Windows, dict[int, FloatArray], IntArray]:
    """Gate one batch (C, B, N): its windows, features of scored channels (B, T, F), and the frames of each (B,)."""
    settings = model.bundle.features
    num_channels, num_windows, _ = batch.samples.shape
    flat = batch.samples.reshape(num_channels * num_windows, -1)  # (C·B, N)
    num_samples = np.tile(batch.num_samples, num_channels)
    num_frames = frames_inside(num_samples, settings)
    length_s = num_samples / settings.rate_hz
    # What the gate hears, of every channel; the network's features of those alone that are scored, and statistics of
    # windows, which take long, further down of those windows alone.
    mel_db = np.empty((num_channels, num_windows, settings.num_frames, settings.num_mels), np.float32)
    stacks = {}
    for channel, samples in enumerate(batch.samples):
        if channel in scored and not settings.of_windows:
            features = extract(samples, settings)
            mel_db[channel], stacks[channel] = features.mel_db, features.stack
        else:
            mel_db[channel] = log_mel(samples, settings)
    level = gate.level_dbfs(flat, num_samples)
    chunks = model.gate(mel_db.reshape(len(flat), *mel_db.shape[2:]), num_frames)  # (C·B, num_chunks, kinds)
    gated = gate.decide(chunks, num_frames, length_s, level, model.bundle.gate)
    shape = (num_channels, num_windows)
    voiced = gated.voiced.reshape(*shape, -1)
    windows = _Windows(
        kind=gated.kind.reshape(shape),
        voiced_s=gated.voiced_s.reshape(shape),
        overtalk_s=gate.overtalk_s(voiced, num_frames[:num_windows], length_s[:num_windows], model.bundle.gate),
        level_dbfs=level.reshape(shape),
        probabilities=np.full((*shape, len(model.bundle.labels)), np.nan, np.float32),
    )
    return windows, stacks, num_frames[:num_windows]


def channel_roles(
    recording: Recording, num_channels: int, settings: RunSettings, *, same_signal: bool = False
) -> tuple[str, ...]:
    """Say who speaks on each channel, one role a channel; one channel only where both carry the same signal.

    Raises
    ------
    AudioError : the manifest states another number of roles than the recording has channels
    """
    if recording.roles is not None and len(recording.roles) != num_channels:
        raise AudioError(
            f"the manifest states {len(recording.roles)} roles ({','.join(recording.roles)}) but the recording has "
            f"{num_channels} channels; state one role per channel, or none"
        )
    if same_signal:
        return ("mixed",)
    if recording.roles is not None:
        return recording.roles
    if settings.channel_roles is not None and len(settings.channel_roles) == num_channels:
        return settings.channel_roles
    if num_channels == 1:
        return ("mixed",)
    return ("unknown",) * num_channels


def scored_channels(roles: Sequence[str], settings: RunSettings) -> list[int]:
    """Channels whose role is one of ``settings.roles`` (every channel where those are ``all``)."""
    every = ALL_ROLES in settings.roles
    return [channel for channel, role in enumerate(roles) if every or role in settings.roles]


def parse_roles(text: str, *, what: str, allow_all: bool = False) -> tuple[str, ...]:
    """Parse a comma-separated list of roles.

    Raises
    ------
    ConfigError : a word that is no role; ``what`` names the option
    """
    words = tuple(word.strip().lower() for word in text.split(",") if word.strip())
    allowed = (*ROLES, ALL_ROLES) if allow_all else ROLES
    bad = [word for word in words if word not in allowed]
    if bad or not words:
        raise ConfigError(f"{what}: received {text!r}, expected a comma-separated list of {', '.join(allowed)}")
    return words


def _outcome(analysis: _Analysis, model: Model, settings: RunSettings, clock: StageClock) -> Outcome:
    """Put a recording's windows together, all of them scored by now, and sum them up."""
    if analysis.fault is None:
        try:
            with clock.at("summary"):
                return _summed_up(analysis, model, settings)
        except Exception as error:
            analysis.fault = _unexpected(analysis.recording, error)
    rows = (summary.failed(*analysis.fault),)
    return Outcome(analysis.recording, rows, source_sha256=analysis.source_sha256, scored_at=datetime.now(UTC))


def _summed_up(analysis: _Analysis, model: Model, settings: RunSettings) -> Outcome:
    features = model.bundle.features
    duration_s = analysis.num_samples / features.rate_hz
    windows = tuple(_channel_windows(analysis, channel, model, settings) for channel in range(len(analysis.roles)))
    summaries = summary.summarise(
        windows,
        scored_channels(analysis.roles, settings),
        model.bundle.labels,
        model.bundle.negative_labels,
        settings.summary,
        duration_s=duration_s,
        min_duration_s=settings.min_duration_s,
    )
    return Outcome(
        analysis.recording,
        summaries,
        windows,
        analysis.truncated,
        duration_s,
        analysis.source_sha256,
        scored_at=datetime.now(UTC),
    )


def _channel_windows(analysis: _Analysis, channel: int, model: Model, settings: RunSettings) -> WindowScores:
    features = model.bundle.features
    start_s, end_s = window_bounds_s(analysis.num_samples, features.window_samples, features.rate_hz)
    probabilities = np.concatenate([b.probabilities[channel] for b in analysis.batches])
    if analysis.num_samples < settings.min_duration_s * features.rate_hz:
        probabilities[:] = np.nan  # too short to say anything of a call
    return WindowScores(
        channel=channel,
        role=analysis.roles[channel],
        start_s=start_s,
        end_s=end_s,
        kind=np.concatenate([b.kind[channel] for b in analysis.batches]),
        voiced_s=np.concatenate([b.voiced_s[channel] for b in analysis.batches]),
        overtalk_s=np.concatenate([b.overtalk_s[channel] for b in analysis.batches]),
        level_dbfs=np.concatenate([b.level_dbfs[channel] for b in analysis.batches]),
        probabilities=probabilities,
        threshold=model.bundle.abstain_threshold,
    )


def score_file(
    path: str | os.PathLike[str],
    settings: RunSettings,
    model: str = DEFAULT_MODEL,
    search: Sequence[Path] = (),
    engine: str = AUTO_ENGINE,
) -> pd.DataFrame:
    """Score one recording in this process; see ``batchser.score``."""
    from batchser.tables import segments_table

    bundle = find_bundle(model, search)
    loaded = load_model(bundle.folder, bundle.sha256, engine_name=engine)
    where = os.fspath(path)
    recording = Recording(0, Path(where).stem, where if "://" in where else str(Path(where).absolute()))
    (outcome,) = score_recordings([recording], loaded, settings)
    if outcome.summaries[0].error:
        raise AudioError(f"{where}: {outcome.summaries[0].error}")
    table: pd.DataFrame = segments_table([outcome], bundle.labels).to_pandas()
    return table
