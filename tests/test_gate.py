"""The gate's rule: from probabilities of chunks to a window's kind, its voiced seconds, overtalk and level."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchser.gate import decide, level_dbfs, overtalk_s
from batchser.records import FLOOR_DBFS, KINDS, MUSIC, NOISE, SILENCE, SPEECH, TONE
from batchser.settings import GateSettings

CHUNKS = 46  # of a whole window of 3 s: 184 frames
SETTINGS = GateSettings()


def chunks(*kinds: tuple[int, int]) -> np.ndarray:
    """Probabilities of one window, (kind, number of chunks) after another, the rest noise: float32 (1, CHUNKS, 5)."""
    timeline = [kind for kind, count in kinds for _ in range(count)]
    timeline += [NOISE] * (CHUNKS - len(timeline))
    return (0.9 * np.eye(len(KINDS))[timeline] + 0.02)[None].astype(np.float32)


def decided(probabilities: np.ndarray, frames: int = 184, length_s: float = 3.0, level: float = -40.0):
    """(kind, voiced_s, voiced) of one window."""
    gated = decide(probabilities, np.array([frames]), np.array([length_s]), np.array([level], np.float32), SETTINGS)
    assert gated.kind.dtype == np.int8
    assert gated.voiced_s.dtype == np.float64
    return int(gated.kind[0]), float(gated.voiced_s[0]), gated.voiced[0]


@pytest.mark.parametrize("kind", [SPEECH, SILENCE, MUSIC, TONE, NOISE])
def test_a_window_of_one_kind_is_that_kind(kind):
    found, voiced_s, _ = decided(chunks((kind, CHUNKS)))
    assert found == kind
    assert voiced_s == (3.0 if kind == SPEECH else 0.0)


@pytest.mark.parametrize(("num_voiced", "kind"), [(7, MUSIC), (8, SPEECH)])  # 7 of 46 chunks are 0.457 s, 8 are 0.522
def test_a_window_is_speech_from_half_a_voiced_second_on(num_voiced, kind):
    found, voiced_s, voiced = decided(chunks((SPEECH, num_voiced), (MUSIC, CHUNKS - num_voiced)))
    assert found == kind
    assert voiced_s == pytest.approx(num_voiced / CHUNKS * 3)
    assert voiced.sum() == num_voiced


def test_below_the_minimum_the_kind_is_what_most_of_the_window_resembles_speech_aside():
    # So few chunks of speech do not pass, and yet no other kind has as many.
    probabilities = chunks((SPEECH, 6), (TONE, 30), (MUSIC, 10))
    assert decided(probabilities)[0] == TONE


def test_a_chunk_is_voiced_from_the_stated_probability_on():
    probabilities = np.zeros((1, CHUNKS, len(KINDS)), np.float32)
    probabilities[0, :, NOISE] = 0.5
    probabilities[0, :, SPEECH] = 0.5
    assert decided(probabilities)[:2] == (SPEECH, 3.0)
    probabilities[0, :, SPEECH] = 0.499
    assert decided(probabilities)[:2] == (NOISE, 0.0)


@pytest.mark.parametrize(("num_voiced", "kind"), [(3, NOISE), (4, SPEECH)])
def test_a_short_tail_is_speech_when_half_of_it_is_voiced(num_voiced, kind):
    frames = 30  # eight chunks, 0.524 s
    found, voiced_s, _ = decided(chunks((SPEECH, num_voiced)), frames, 0.528)
    assert found == kind
    assert voiced_s == pytest.approx(num_voiced / 8 * 0.528)


def test_chunks_behind_the_end_of_a_tail_do_not_count():
    found, voiced_s, voiced = decided(chunks((NOISE, 8), (SPEECH, CHUNKS - 8)), 30, 0.528)
    assert (found, voiced_s) == (NOISE, 0.0)
    assert not voiced.any()


def test_a_tail_without_a_single_frame_is_silence():
    assert decided(chunks((SPEECH, CHUNKS)), 0, 0.001)[:2] == (SILENCE, 0.0)


@pytest.mark.parametrize(("level", "kind"), [(-65.1, SILENCE), (-65.0, SPEECH), (FLOOR_DBFS, SILENCE)])
def test_what_is_too_quiet_is_silence_whatever_the_network_says(level, kind):
    found, voiced_s, _ = decided(chunks((SPEECH, CHUNKS)), level=level)
    assert found == kind
    assert voiced_s == (3.0 if kind == SPEECH else 0.0)


@given(seed=st.integers(0, 2**32 - 1), num_windows=st.integers(1, 6))
def test_voiced_seconds_lie_within_the_window(seed, num_windows):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(len(KINDS), 0.3), (num_windows, CHUNKS)).astype(np.float32)
    frames = rng.integers(0, 185, num_windows)
    length_s = np.where(frames > 0, 0.048 + 0.016 * frames, 0.01)
    level = rng.uniform(-100, 0, num_windows).astype(np.float32)
    gated = decide(probabilities, frames, length_s, level, SETTINGS)
    assert ((gated.voiced_s >= 0) & (gated.voiced_s <= length_s)).all()
    assert np.isin(gated.kind, range(len(KINDS))).all()
    assert (gated.voiced_s[gated.kind == SPEECH] > 0).all()
    assert (gated.voiced_s[gated.kind != SPEECH] < SETTINGS.min_voiced_s).all()


def test_overtalk_is_where_two_channels_are_voiced_at_once():
    voiced = np.zeros((3, 2, CHUNKS), bool)
    voiced[0, 0, :23] = True  # the first half of the first window
    voiced[1, 0, 11:34] = True
    voiced[2, 1, :] = True  # alone in the second window
    found = overtalk_s(voiced, np.array([184, 184]), np.array([3.0, 3.0]), SETTINGS)
    both_s = 12 / 46 * 3
    np.testing.assert_allclose(found, [[both_s, 0], [both_s, 0], [0, 0]])


def test_overtalk_of_a_tail_is_measured_by_its_true_length():
    voiced = np.zeros((2, 1, CHUNKS), bool)
    voiced[:, 0, :8] = True
    np.testing.assert_allclose(overtalk_s(voiced, np.array([30]), np.array([0.528]), SETTINGS), [[0.528], [0.528]])


def test_one_channel_never_talks_over_itself():
    voiced = np.ones((1, 1, CHUNKS), bool)
    assert overtalk_s(voiced, np.array([184]), np.array([3.0]), SETTINGS).tolist() == [[0.0]]


def test_level_is_the_mean_power_over_the_true_length():
    samples = np.zeros((4, 1000), np.float32)
    samples[0] = np.tile([1.0, -1.0], 500)
    samples[1] = samples[0] / 10 + 0.5  # a constant offset is no sound
    samples[2, :100] = samples[0, :100] / 10  # a tail
    found = level_dbfs(samples, np.array([1000, 1000, 100, 1000]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [0, -20, -20, FLOOR_DBFS], atol=1e-4)


def test_level_of_nearly_nothing_stops_at_the_floor():
    assert level_dbfs(np.full((1, 10), 1e-7, np.float32), np.array([10])).tolist() == [FLOOR_DBFS]
    assert level_dbfs(np.zeros((1, 10), np.float32), np.array([0])).tolist() == [FLOOR_DBFS]


@pytest.mark.parametrize(
    ("heard", "level", "kind"),
    [
        (NOISE, -49.0, NOISE),
        (NOISE, -51.0, SILENCE),  # a quiet line's own noise
        (SILENCE, -36.0, SILENCE),
        (SILENCE, -34.0, NOISE),  # a steady hiss as loud as speech
        (MUSIC, -60.0, MUSIC),
        (TONE, -60.0, TONE),
        (SPEECH, -60.0, SPEECH),  # level never decides on speech
    ],
)
def test_level_tells_noise_from_silence_and_nothing_else(heard, level, kind):
    assert decided(chunks((heard, CHUNKS)), level=level)[0] == kind


def test_a_loud_word_too_short_to_pass_does_not_make_a_silent_window_noise():
    assert decided(chunks((SPEECH, 7), (SILENCE, CHUNKS - 7)), level=-30.0)[0] == SILENCE
