"""Shards: consecutive recordings of about equal minutes, one task each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from batchser.errors import ConfigError
from batchser.records import Recording

#: What a recording of unknown length counts for in a shard: a usual call.
UNKNOWN_SECONDS: Final = 300.0


@dataclass(frozen=True)
class Shard:
    """Consecutive recordings that one task works through; ``number`` counts from 0."""

    number: int
    recordings: tuple[Recording, ...]


def make_shards(
    recordings: Sequence[Recording],
    seconds: Sequence[float | None],
    target_s: float,
    max_recordings: int = 500,
) -> list[Shard]:
    """Cut the recordings, in order, into runs of at most ``target_s`` seconds and ``max_recordings`` recordings.

    A run never spans a gap in the manifest (recordings that an earlier try has finished), so that the rows of any two
    shards do not interleave.

    Parameters
    ----------
    recordings
        In manifest order.
    seconds
        The length of each; None (or NaN) counts as UNKNOWN_SECONDS.
    target_s
        The seconds of a full shard. A longer recording is a shard of its own.
    max_recordings
        So that many short or empty files do not become one endless task.

    Raises
    ------
    ConfigError
        If ``target_s`` or ``max_recordings`` is not positive.
    """
    if not target_s > 0 or max_recordings < 1:
        raise ConfigError(f"shards of {target_s} s and {max_recordings} recordings; expected both to be positive")
    runs: list[list[Recording]] = []
    filled_s = 0.0
    for recording, length in zip(recordings, seconds, strict=True):
        length_s = UNKNOWN_SECONDS if length is None or math.isnan(length) else max(0.0, length)
        is_full = filled_s + length_s > target_s or (bool(runs) and len(runs[-1]) >= max_recordings)
        if not runs or is_full or recording.index != runs[-1][-1].index + 1:
            runs.append([])
            filled_s = 0.0
        runs[-1].append(recording)
        filled_s += length_s
    return [Shard(number, tuple(run)) for number, run in enumerate(runs)]
