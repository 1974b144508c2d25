"""The window grid: blocks and batches of any size give the same windows, and windows tile the recording."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchser.records import AudioBlock
from batchser.windows import cut_windows, window_bounds_s

SIZE = 12  # window_samples


def blocks_of(samples: np.ndarray, lengths: list[int]) -> list[AudioBlock]:
    """``samples`` (channels, n) in blocks of the given lengths, whatever is left in a last one."""
    blocks, start = [], 0
    for length in [*lengths, samples.shape[1]]:
        block = AudioBlock(start, samples[:, start : start + length])
        blocks.append(block)
        start += block.samples.shape[1]
    return blocks


def ramp(num_channels: int, num_samples: int) -> np.ndarray:
    """Samples that are all different and never 0, float32 (num_channels, num_samples)."""
    return (1 + np.arange(num_channels * num_samples, dtype=np.float32)).reshape(num_channels, num_samples)


def cut(samples: np.ndarray, lengths: list[int], batch_windows: int) -> tuple[np.ndarray, np.ndarray]:
    """All windows (channels, n, SIZE) and their true lengths; checks what every batch must satisfy."""
    parts, num_samples, segment = [], [], 0
    for batch in cut_windows(blocks_of(samples, lengths), SIZE, batch_windows):
        assert batch.first_segment == segment
        assert batch.samples.dtype == np.float32
        assert batch.num_samples.dtype == np.int32
        assert 1 <= batch.samples.shape[1] <= batch_windows
        assert batch.samples.shape == (len(samples), len(batch.num_samples), SIZE)
        segment += len(batch.num_samples)
        parts.append(batch.samples)
        num_samples.append(batch.num_samples)
    if not parts:
        return np.zeros((len(samples), 0, SIZE), np.float32), np.zeros(0, np.int32)
    return np.concatenate(parts, axis=1), np.concatenate(num_samples)


@given(
    num_channels=st.integers(1, 3),
    num_samples=st.integers(0, 5 * SIZE + 3),
    lengths=st.lists(st.integers(0, 3 * SIZE), max_size=8),
    batch_windows=st.integers(1, 7),
)
def test_any_blocks_and_batches_give_the_same_windows(num_channels, num_samples, lengths, batch_windows):
    samples = ramp(num_channels, num_samples)
    windows, true_lengths = cut(samples, lengths, batch_windows)
    expected, expected_lengths = cut(samples, [], 1000)
    np.testing.assert_array_equal(windows, expected)
    np.testing.assert_array_equal(true_lengths, expected_lengths)


@given(num_channels=st.integers(1, 3), num_samples=st.integers(0, 5 * SIZE + 3))
def test_windows_tile_the_recording_and_only_the_tail_is_padded(num_channels, num_samples):
    samples = ramp(num_channels, num_samples)
    windows, true_lengths = cut(samples, [], 2)
    assert true_lengths.sum() == num_samples
    assert (true_lengths[:-1] == SIZE).all()
    flat = windows.reshape(num_channels, -1)
    np.testing.assert_array_equal(flat[:, :num_samples], samples)
    assert not flat[:, num_samples:].any()
    assert flat.shape[1] - num_samples < SIZE


@pytest.mark.parametrize(
    ("num_samples", "lengths"),
    [
        (0, []), (1, [1]), (SIZE - 1, [SIZE - 1]), (SIZE, [SIZE]), (SIZE + 1, [SIZE, 1]),
        (3 * SIZE - 1, [SIZE, SIZE, SIZE - 1]), (3 * SIZE, [SIZE] * 3), (3 * SIZE + 1, [SIZE, SIZE, SIZE, 1]),
    ],
)  # fmt: skip
def test_a_tail_keeps_its_true_length(num_samples, lengths):
    assert cut(ramp(2, num_samples), [5], 2)[1].tolist() == lengths


@pytest.mark.parametrize(
    ("num_samples", "edges_s"),
    [
        (0, [0]), (1, [0, 1 / 8000]), (23_999, [0, 23_999 / 8000]), (24_000, [0, 3]), (24_001, [0, 3, 24_001 / 8000]),
        (72_000, [0, 3, 6, 9]),
    ],
)  # fmt: skip
def test_bounds_run_from_zero_to_the_true_end(num_samples, edges_s):
    start_s, end_s = window_bounds_s(num_samples, 24_000, 8000)
    assert start_s.tolist() == edges_s[:-1]
    assert end_s.tolist() == edges_s[1:]


@given(num_samples=st.integers(1, 10**7), rate_hz=st.sampled_from([8000, 11_025, 16_000, 22_050]))
def test_bounds_touch_and_match_the_windows(num_samples, rate_hz):
    start_s, end_s = window_bounds_s(num_samples, 3 * rate_hz, rate_hz)
    assert start_s.dtype == end_s.dtype == np.float64
    assert start_s[0] == 0
    assert end_s[-1] == num_samples / rate_hz
    np.testing.assert_array_equal(start_s[1:], end_s[:-1])
    assert (end_s > start_s).all()
    assert len(start_s) == -(-num_samples // (3 * rate_hz))
