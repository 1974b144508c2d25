"""The window grid, in integer samples: windows tile [0, length) exactly, the tail keeps its true length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from batchser.records import AudioBlock, DoubleArray, FloatArray, WindowBatch


def cut_windows(blocks: Iterable[AudioBlock], window_samples: int, batch_windows: int = 64) -> Iterator[WindowBatch]:
    """Regroup blocks of any length into windows, at most ``batch_windows`` at a time.

    Parameters
    ----------
    blocks : consecutive AudioBlocks from sample 0 on, float32 (num_channels, n), n ≥ 0
    window_samples : the length of a window, which is also the hop: windows touch and do not overlap
    batch_windows : the most windows in one batch; results do not depend on it

    Yields
    ------
    WindowBatch with samples float32 (num_channels, ≤ batch_windows, window_samples). All windows are whole but
    perhaps the last one of the recording, which is padded with zeros. No samples: no batch.
    """
    batch_samples = window_samples * batch_windows
    pending: list[FloatArray] = []
    num_pending = 0
    segment = 0
    for block in blocks:
        pending.append(block.samples)
        num_pending += block.samples.shape[1]
        while num_pending >= batch_samples:
            joined = np.concatenate(pending, axis=1)
            yield _batch(joined[:, :batch_samples], window_samples, segment)
            segment += batch_windows
            pending = [joined[:, batch_samples:]]
            num_pending -= batch_samples
    if num_pending:
        yield _batch(np.concatenate(pending, axis=1), window_samples, segment)


def _batch(samples: FloatArray, window_samples: int, first_segment: int) -> WindowBatch:
    """Fold (num_channels, n) into windows; the last one is padded with zeros."""
    num_channels, length = samples.shape
    num_windows = -(-length // window_samples)
    num_samples = np.full(num_windows, window_samples, np.int32)
    num_samples[-1] = length - (num_windows - 1) * window_samples
    padding = num_windows * window_samples - length
    if padding:
        samples = np.pad(samples, ((0, 0), (0, padding)))
    folded = np.ascontiguousarray(samples, np.float32).reshape(num_channels, num_windows, window_samples)
    return WindowBatch(first_segment, folded, num_samples)


def window_bounds_s(num_samples: int, window_samples: int, rate_hz: int) -> tuple[DoubleArray, DoubleArray]:
    """Start and end of each window of a recording of ``num_samples``, in seconds, float64 (num_windows,) each."""
    edges = np.append(np.arange(0, num_samples, window_samples), num_samples) if num_samples else np.zeros(1, np.int64)
    seconds = edges / rate_hz
    return seconds[:-1], seconds[1:]
