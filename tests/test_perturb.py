"""What windows meet anew in each epoch: noise as on a line, warps, masks, mixup."""

import dataclasses

import numpy as np
import pytest

from batchser.bundle import NetworkSpec
from batchser.errors import ConfigError
from batchser.features import centre, extract, frames_inside, log_mel, network_input
from batchser.settings import FeatureSettings
from batchser.training.augment import add_noise
from batchser.training.augment.line import band_pass
from batchser.training.augment.sounds import coloured_noise
from batchser.training.fit import Examples, Task, fit
from batchser.training.perturb import LineNoise, frames_heard, mask, mix, warp
from batchser.training.recipe import FitSettings, recipe_of

FEATURES = FeatureSettings(keep_colour=True, centred_min_db=-60.0)
LENGTHS = np.array([24000, 24000, 16000, 9000], np.int32)


@pytest.fixture(scope="module")
def voices():
    """Four windows of something like a voice, float32 (4, 24000), the last two ending early: syllables of harmonics."""
    rng, t = np.random.default_rng(3), np.arange(24000) / 8000
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * t)
    harmonics = sum(np.sin(k * 2 * np.pi * np.cumsum(pitch) / 8000) / k for k in range(2, 25))
    syllables = np.clip(np.sin(2 * np.pi * 2.3 * t), 0, 1)
    windows = 0.1 * harmonics * syllables + 1e-3 * rng.standard_normal((4, 24000))
    for window, length in zip(windows, LENGTHS, strict=True):
        window[length:] = 0
    return windows.astype(np.float32)


def centred(windows, lengths=LENGTHS, features=FEATURES):
    return centre(log_mel(windows, features), frames_inside(lengths, features), features)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 25.0])
def test_noise_added_to_features_is_what_the_features_of_noisy_sound_show(voices, snr_db, monkeypatch):
    monkeypatch.setattr("batchser.training.perturb._SLOPE", (1.0, 1.0))
    monkeypatch.setattr("batchser.training.perturb._LOW_HZ", (250.0, 250.0))
    monkeypatch.setattr("batchser.training.perturb._HIGH_HZ", (3500.0, 3500.0))
    monkeypatch.setattr("batchser.training.perturb._TO_THE_END", 0.0)
    noise = LineNoise.of(FEATURES)
    drawn, settings = [], FitSettings(noise_probability=1.0, noise_snr_db=(snr_db, snr_db))
    heard = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        noisy = voices.copy()
        for window, length in zip(noisy, LENGTHS, strict=True):
            pink = band_pass(coloured_noise(rng, length, 1.0), 8000, 250, 3500)
            window[:length] = add_noise(window[:length], pink, snr_db, 8000)
        heard.append(centred(noisy))
        drawn.append(noise.add(rng, centred(voices), settings))
    drawn, heard, quiet = (np.array(each)[..., 4:58] for each in (drawn, heard, [centred(voices)]))  # 320 to 3300 Hz
    ours, true = drawn.mean(axis=0), heard.mean(axis=0)
    for k, frames in enumerate(frames_inside(LENGTHS, FEATURES)):
        apart = np.abs(ours[k, : frames - 2] - true[k, : frames - 2])
        assert apart.mean() < 1.6, k
        # It is the noise that makes them alike: without it they are far apart.
        assert np.abs(quiet[0, k, : frames - 2] - true[k, : frames - 2]).mean() > 3 * apart.mean(), k
    np.testing.assert_allclose(drawn.std(axis=0).mean(), heard.std(axis=0).mean(), rtol=0.4)  # phases are lost


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
def test_noise_weakens_pitch_as_in_noisy_sound(voices, snr_db, monkeypatch):
    monkeypatch.setattr("batchser.training.perturb._SLOPE", (1.0, 1.0))
    monkeypatch.setattr("batchser.training.perturb._LOW_HZ", (250.0, 250.0))
    monkeypatch.setattr("batchser.training.perturb._HIGH_HZ", (3500.0, 3500.0))
    features = dataclasses.replace(FEATURES, names=("mel", "pitch"))
    voices = np.stack([band_pass(window, 8000, 250, 3500) for window in voices[:2]])
    noisy, frames = np.empty_like(voices), np.full(2, features.num_frames, np.int32)
    rng = np.random.default_rng(0)
    for window, voice in zip(noisy, voices, strict=True):
        window[:] = add_noise(voice, band_pass(coloured_noise(rng, 24000, 1.0), 8000, 250, 3500), snr_db, 8000)
    quiet, heard = (network_input(extract(each, features).stack, frames, features) for each in (voices, noisy))
    settings = FitSettings(noise_probability=1.0, noise_snr_db=(snr_db, snr_db))
    drawn = LineNoise.of(features).add(rng, quiet, settings)
    assert drawn.shape == heard.shape
    strongest = quiet[..., 64:].argmax(axis=2)[..., None]
    before, ours, true = (np.take_along_axis(x[..., 64:], strongest, 2).mean() for x in (quiet, drawn, heard))
    assert abs(ours - true) < 0.3 * (before - true)
    # Noise has pitch by chance and by its colour and band: had it none, that would give it away.
    np.testing.assert_allclose(drawn[..., 64:].std(axis=1).mean(), heard[..., 64:].std(axis=1).mean(), rtol=0.2)


@pytest.mark.parametrize(("slope", "low_hz"), [(0.0, 300.0), (1.0, 300.0), (1.5, 120.0)])
def test_noise_has_the_pitch_of_its_colour_and_band(voices, slope, low_hz, monkeypatch):
    monkeypatch.setattr("batchser.training.perturb._SLOPE", (slope, slope))
    monkeypatch.setattr("batchser.training.perturb._LOW_HZ", (low_hz, low_hz))
    features = dataclasses.replace(FEATURES, names=("mel", "pitch"))
    voices, frames = voices[:2] * (np.arange(24000) < 8000), np.full(2, features.num_frames, np.int32)  # and a pause
    rng = np.random.default_rng(0)
    pink = np.stack([band_pass(coloured_noise(rng, 24000, slope), 8000, low_hz, 3500) for _ in voices])
    quiet = network_input(extract(voices, features).stack, frames, features)
    heard = extract(pink.astype(np.float32), features).stack[:, 80:, 64:].mean(axis=(0, 1))
    settings = FitSettings(noise_probability=1.0, noise_snr_db=(0.0, 0.0))
    monkeypatch.setattr("batchser.training.perturb._TO_THE_END", 1.0)
    made = LineNoise.of(features).add(rng, quiet, settings)[:, 80:, 64:].mean(axis=(0, 1))
    assert np.abs(heard).max() > 0.03  # there is some
    assert np.corrcoef(made, heard)[0, 1] > 0.95
    assert np.abs(made - heard).max() < 0.02


def test_as_many_windows_are_noisy_as_asked_for_and_the_others_stay(voices):
    noise, x = LineNoise.of(FEATURES), np.tile(centred(voices), (100, 1, 1))
    settings = FitSettings(noise_probability=0.3, noise_snr_db=(5.0, 20.0))
    found = noise.add(np.random.default_rng(0), x, settings)
    changed = (found != x).any(axis=(1, 2))
    assert 90 < changed.sum() < 150
    assert np.isfinite(found).all()
    assert np.array_equal(found, noise.add(np.random.default_rng(0), x, settings))
    assert not np.array_equal(found, noise.add(np.random.default_rng(1), x, settings))
    assert noise.add(np.random.default_rng(0), x, FitSettings()) is x


@pytest.mark.parametrize("to_the_end", [0.0, 1.0])
def test_noise_ends_with_the_voice_or_goes_on_to_the_end(voices, to_the_end, monkeypatch):
    monkeypatch.setattr("batchser.training.perturb._TO_THE_END", to_the_end)
    x = centred(voices)[2:]
    inside = frames_inside(LENGTHS, FEATURES)[2:]
    assert np.array_equal(frames_heard(x), inside)
    settings = FitSettings(noise_probability=1.0, noise_snr_db=(0.0, 0.0))
    noise = LineNoise.of(FEATURES)
    found = noise.add(np.random.default_rng(0), x, settings)
    for k, frames in enumerate(inside):
        past = found[k, frames:]
        assert past.std() > 1 if to_the_end else len(np.unique(past)) == 1
    silent = centred(np.zeros((2, 24000), np.float32), LENGTHS[:2])
    assert np.array_equal(noise.add(np.random.default_rng(0), silent, settings), silent)


def test_a_killed_fit_draws_the_same_noise_when_it_goes_on(voices, tmp_path):
    inputs = np.tile(centred(voices)[:, None], (3, 1, 1, 1)).astype(np.float16)
    examples = Examples(inputs, np.eye(2, dtype=np.float32)[np.arange(12) % 2])
    settings = FitSettings(epochs=2, batch_size=4, noise_probability=0.8, patience=9)
    network = NetworkSpec("dense-stack", {"units": [4]})
    rows = np.arange(12, dtype=np.int32)
    task = Task("0", rows[:9], rows[9:], network, 2, settings, 1, features=FEATURES)
    whole = fit(examples, task, [].append)

    class KilledError(Exception):
        pass

    def kill(epoch, uar):
        if epoch == 1:
            raise KilledError

    state = tmp_path / "state.npz"
    with pytest.raises(KilledError):
        fit(examples, task, [].append, state, watch=kill)
    resumed = fit(examples, task, [].append, state)
    assert whole.history == resumed.history
    quiet = dataclasses.replace(task, settings=dataclasses.replace(settings, noise_probability=0.0))
    assert fit(examples, quiet, [].append).history["loss"] != whole.history["loss"]


@pytest.mark.parametrize(("names", "num_bands"), [(("mel",), 64), (("mel", "pitch"), 64)])
def test_a_fit_warps_bands_and_not_pitches(names, num_bands, monkeypatch):
    told = []
    monkeypatch.setattr("batchser.training.fit.warp", lambda rng, x, settings, bands: told.append((x.shape[2], bands)))
    features = dataclasses.replace(FEATURES, names=names)
    inputs = np.ones((4, 1, features.num_frames, features.num_features), np.float16)
    rows, settings = np.arange(4, dtype=np.int32), FitSettings(epochs=1, batch_size=4)
    network = NetworkSpec("dense-stack", {"units": [4]})
    task = Task("x", rows, rows, network, 2, settings, seed=0, features=features)
    fit(Examples(inputs, np.eye(2, dtype=np.float32)[rows % 2]), task, [].append)
    assert told == [(features.num_features, num_bands)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fit": {"noise_probability": 2}}, r"fit.noise_probability: received 2, expected a number of 0 to 1"),
        (
            {"fit": {"noise_snr_db": [9, 3]}},
            r"fit.noise_snr_db: received \(9, 3\), expected two rising numbers from -20 to 100",
        ),
        ({"fit": {"noise_snr_db": 9}}, r"fit.noise_snr_db: received 9, expected two rising numbers"),
        ({"windows": {"noise_snr_db": [-400, 0]}}, "windows.noise_snr_db: received"),
        ({"gate_fit": {"noise_probability": 0.5}}, r"gate_fit.noise_probability: received 0.5, expected 0: the gate's"),
        (
            {"fit": {"noise_probability": 0.5}, "features": {"names": ["mfcc"], "centred": False}},
            r"fit.noise_probability: received 0.5, expected 0: noise is added to log-mel that keeps its colour",
        ),
        ({"teacher_fit": {"noise_probability": 0.5}}, r"teacher_fit.noise_probability: .* \(features.keep_colour\)"),
    ],
)
def test_a_recipe_with_noise_where_none_can_be_is_refused(changes, message):
    values = {"name": "x", "corpora": ["CREMA-D"], "labels": ["sad"], "negative_labels": ["sad"]}
    with pytest.raises(ConfigError, match=message):
        recipe_of(values | changes)


def test_warping_moves_bands_and_frames_by_no_more_than_it_says_and_nothing_where_it_is_off():
    rng, x = np.random.default_rng(1), np.zeros((200, 40, 30), np.float32)
    x[:, 30, 20] = 1.0
    still = x.copy()
    warp(rng, still, FitSettings())
    assert np.array_equal(still, x)
    warp(rng, x, FitSettings(frequency_warp=0.2, time_warp=0.1))
    frames, bands = x.sum(axis=2).argmax(axis=1), x.sum(axis=1).argmax(axis=1)
    assert set(frames) == {29, 30, 31}  # 10.5 from the middle, a tenth more or less
    assert (bands.min(), bands.max()) == (17, 25)  # 20 / 1.2 and 20 / 0.8
    assert 0.2 < (bands == 20).mean() < 0.5
    x = np.zeros((50, 40, 30), np.float32)
    x[:, 20, [10, 20]] = 1.0
    warp(rng, x, FitSettings(frequency_warp=0.2), num_bands=15)
    assert (x[:, 20, :15].argmax(axis=1) != 10).any()
    assert (x[:, 20, 20] == 1).all()  # what is no band stays
    ramp = np.tile(np.arange(30, dtype=np.float32), (1, 4, 1))
    warp(np.random.default_rng(0), ramp, FitSettings(frequency_warp=0.5, time_warp=0.5))
    assert ramp.min() >= 0
    assert ramp.max() <= 29
    assert np.allclose(ramp[0], ramp[0, 0])  # frames that are alike stay alike


def test_masks_are_stripes_no_wider_than_stated():
    x = np.ones((50, 30, 20), np.float32)
    mask(np.random.default_rng(0), x, FitSettings(frequency_mask=3, time_mask=5))
    rows = (x == 0).all(axis=2).sum(axis=1)
    columns = (x == 0).all(axis=1).sum(axis=1)
    assert 0 < rows.max() <= 10
    assert 0 < columns.max() <= 6
    for example in x:  # nothing but whole stripes
        silent_rows, silent_columns = (example == 0).all(axis=1), (example == 0).all(axis=0)
        np.testing.assert_array_equal(example == 0, silent_rows[:, None] | silent_columns)


def test_mixup_blends_inputs_and_targets_alike():
    x = np.repeat(np.arange(8, dtype=np.float32)[:, None, None], 3, axis=1)
    mixed_x, mixed_y = mix(np.random.default_rng(0), x, np.eye(8, dtype=np.float32), 0.4)
    np.testing.assert_allclose(mixed_y.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(mixed_x[:, 0, 0], mixed_y @ np.arange(8), atol=1e-5)
