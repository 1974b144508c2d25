"""Scoring in batches: however windows arrive, each gets the probabilities that it gets alone, in its own row."""

import dataclasses
import itertools

import numpy as np
import pytest
from conftest import LABELS, WINDOW, speechlike, tiny_arrays
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchser.features import extract, frames_inside
from batchser.records import KINDS
from batchser.scoring import BatchScorer, Model, softmax
from batchser.settings import FeatureSettings

NUM_WINDOWS = 20
FEATURES = FeatureSettings()
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def windows() -> tuple[np.ndarray, np.ndarray]:
    """Features (n, T, F) and frames (n,) of windows of many lengths."""
    samples = speechlike(3 * NUM_WINDOWS, 3).reshape(NUM_WINDOWS, WINDOW)
    num_samples = np.random.default_rng(0).integers(4000, WINDOW + 1, NUM_WINDOWS).astype(np.int32)
    num_samples[::2] = WINDOW
    samples[np.arange(WINDOW) >= num_samples[:, None]] = 0
    return extract(samples, FEATURES).stack, frames_inside(num_samples, FEATURES)


@pytest.fixture(scope="module")
def alone(tiny_model: Model, windows) -> np.ndarray:
    """Each window's probabilities when it is scored by itself."""
    stack, frames = windows
    rows = [tiny_model.emotions(tiny_model.prepare(stack[k : k + 1], frames[k : k + 1])) for k in range(NUM_WINDOWS)]
    return np.concatenate(rows)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, NUM_WINDOWS), max_size=6), batch=st.sampled_from([1, 2, 3, 7, 19, 20, 21, 256]))
def test_any_submissions_and_any_batch_size_give_the_same_probabilities(tiny_model, windows, alone, cuts, batch):
    stack, frames = windows
    scorer = BatchScorer(tiny_model, batch)
    edges = [0, *sorted(cuts), NUM_WINDOWS]
    targets = []
    for first, end in itertools.pairwise(edges):
        rows = np.arange(end - first)[::-1] * 2  # every other row, backwards: the rows between must stay empty
        target = np.full((2 * (end - first), len(LABELS)), np.nan, np.float32)
        scorer.submit(stack[first:end], frames[first:end], target, rows)
        targets.append((target, rows, first, end))
    assert scorer.num_submitted == NUM_WINDOWS
    assert NUM_WINDOWS - scorer.num_scored < batch
    scorer.flush()
    assert scorer.num_scored == NUM_WINDOWS
    for target, rows, first, end in targets:
        np.testing.assert_allclose(target[rows], alone[first:end], atol=TOLERANCE)
        assert np.isnan(target[1::2]).all()


def test_a_full_batch_is_scored_at_once_and_the_rest_on_flush(tiny_model, windows):
    stack, frames = windows
    target = np.full((NUM_WINDOWS, len(LABELS)), np.nan, np.float32)
    scorer = BatchScorer(tiny_model, 8)
    assert scorer.submit(stack, frames, target, np.arange(NUM_WINDOWS)) == NUM_WINDOWS
    assert scorer.num_scored == 16
    assert np.isnan(target).any(axis=1).tolist() == [False] * 16 + [True] * 4
    scorer.flush()
    assert not np.isnan(target).any()
    scorer.flush()
    assert scorer.num_scored == NUM_WINDOWS


def test_no_windows_are_no_work(tiny_model, windows):
    stack, frames = windows
    scorer = BatchScorer(tiny_model, 4)
    assert scorer.submit(stack[:0], frames[:0], np.empty((0, len(LABELS)), np.float32), np.arange(0)) == 0
    scorer.flush()
    assert (scorer.num_submitted, scorer.num_scored) == (0, 0)


def test_answers_are_probabilities_and_windows_differ(alone):
    assert alone.dtype == np.float32
    np.testing.assert_allclose(alone.sum(axis=1), 1, atol=1e-5)
    assert len(set(alone.argmax(axis=1).tolist())) >= 2
    assert alone.std(axis=0).max() > 0.02


def test_temperature_flattens_and_keeps_the_answer(tiny_bundle, windows):
    stack, frames = windows
    arrays = tiny_arrays()
    plain, hot = (Model(dataclasses.replace(tiny_bundle, temperature=t), arrays) for t in (1.0, 3.0))
    prepared = plain.prepare(stack, frames)
    sharp, flat = plain.emotions(prepared), hot.emotions(prepared)
    np.testing.assert_array_equal(sharp.argmax(axis=1), flat.argmax(axis=1))
    assert (flat.max(axis=1) < sharp.max(axis=1)).all()
    np.testing.assert_allclose(softmax(np.log(sharp) / 3), flat, atol=1e-5)


def test_what_stands_behind_the_true_end_does_not_matter(tiny_model):
    num_samples = np.array([10_000], np.int32)
    frames = frames_inside(num_samples, FEATURES)
    samples = speechlike(3, 4)[None].copy()
    stack = extract(samples, FEATURES).stack
    changed = stack.copy()
    changed[:, frames[0] :] = 37.0
    np.testing.assert_array_equal(
        tiny_model.emotions(tiny_model.prepare(stack, frames)), tiny_model.emotions(tiny_model.prepare(changed, frames))
    )
    np.testing.assert_array_equal(tiny_model.gate(stack, frames), tiny_model.gate(changed, frames))


def test_the_gate_answers_each_chunk_with_probabilities_of_every_kind(tiny_model, windows):
    stack, frames = windows
    found = tiny_model.gate(stack, frames)
    assert found.shape == (NUM_WINDOWS, 46, len(KINDS))
    np.testing.assert_allclose(found.sum(axis=2), 1, atol=1e-5)


def test_softmax_is_stable_for_large_logits():
    found = softmax(np.array([[1e4, 0, -1e4], [0, 0, 0]], np.float32))
    np.testing.assert_allclose(found, [[1, 0, 0], [1 / 3] * 3], atol=1e-6)
