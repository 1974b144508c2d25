"""Fast features equal librosa's, window by window, and do not depend on how windows are batched."""

import itertools
import sys

import librosa
import numpy as np
import pytest

from batchser.errors import ConfigError
from batchser.features import (
    centre,
    check_libraries,
    extract,
    frames_inside,
    level_below_peak,
    log_mel,
    network_input,
)
from batchser.settings import FEATURE_NAMES, PROSODY, FeatureSettings

TELEPHONE = FeatureSettings(names=FEATURE_NAMES, centred=False)
WIDEBAND = FeatureSettings(
    centred=False,
    names=FEATURE_NAMES, rate_hz=22_050, fft_samples=2048, hop_samples=512, num_mels=128, mel_max_hz=11_025.0,
    num_contrast_bands=6,
)  # fmt: skip
#: Largest difference from librosa allowed, in each feature's own unit (dB; chroma and tonnetz are at most 1).
TOLERANCE = {"mfcc": 2e-2, "delta": 2e-3, "chroma": 2e-4, "mel": 2e-3, "contrast": 1e-2, "tonnetz": 2e-4}


def speechlike(settings: FeatureSettings, num_windows: int, seed: int = 0) -> np.ndarray:
    """A gliding harmonic tone in gated noise, float32 (num_windows, window_samples)."""
    rng = np.random.default_rng(seed)
    n = settings.window_samples
    t = np.arange(n) / settings.rate_hz
    f0 = rng.uniform(90, 250, (num_windows, 1)) * (1 + 0.2 * np.sin(2 * np.pi * 0.7 * t))
    phase = 2 * np.pi * np.cumsum(f0, axis=1) / settings.rate_hz
    voice = sum(np.sin(h * phase) / h for h in range(1, 12)) * (np.sin(2 * np.pi * 2.1 * t) > -0.3)
    return (0.1 * voice + 0.003 * rng.standard_normal((num_windows, n))).astype(np.float32)


def librosa_features(y: np.ndarray, s: FeatureSettings) -> dict[str, np.ndarray]:
    """The papers' recipe on one window, (frames, width) each."""
    magnitude = np.abs(librosa.stft(y, n_fft=s.fft_samples, hop_length=s.hop_samples, center=False))
    mel = librosa.feature.melspectrogram(
        S=magnitude**2, sr=s.rate_hz, n_mels=s.num_mels, fmin=s.mel_min_hz, fmax=s.mel_max_hz, n_fft=s.fft_samples
    )
    mel_db = librosa.power_to_db(mel, top_db=s.top_db)
    mfcc = librosa.feature.mfcc(S=mel_db, n_mfcc=s.num_mfcc)
    chroma = librosa.feature.chroma_stft(S=magnitude**2, sr=s.rate_hz, n_fft=s.fft_samples, tuning=0.0)
    contrast = librosa.feature.spectral_contrast(
        S=magnitude, sr=s.rate_hz, n_fft=s.fft_samples, n_bands=s.num_contrast_bands, fmin=s.contrast_min_hz
    )
    found = {
        "mel": mel_db, "mfcc": mfcc, "delta": librosa.feature.delta(mfcc), "chroma": chroma, "contrast": contrast,
        "tonnetz": librosa.feature.tonnetz(chroma=chroma),
    }  # fmt: skip
    return {name: value.T for name, value in found.items()}


def test_every_feature_but_pitch_has_a_librosa_to_be_measured_by():
    assert set(TOLERANCE) == set(FEATURE_NAMES) - {"pitch"}


@pytest.mark.parametrize("settings", [TELEPHONE, WIDEBAND], ids=["telephone", "wideband"])
@pytest.mark.parametrize("name", TOLERANCE)
def test_each_feature_equals_librosas(settings, name):
    windows = speechlike(settings, 3)
    stack = extract(windows, settings).stack
    start = sum(settings.width_of(n) for n in FEATURE_NAMES[: FEATURE_NAMES.index(name)])
    for window, ours in zip(windows, stack, strict=True):
        theirs = librosa_features(window, settings)[name]
        np.testing.assert_allclose(
            ours[:, start : start + settings.width_of(name)], theirs, rtol=0, atol=TOLERANCE[name]
        )


def test_silent_and_tiny_windows_give_finite_features():
    windows = np.zeros((2, TELEPHONE.window_samples), np.float32)
    windows[1, 0] = 1e-4
    assert np.isfinite(extract(windows, TELEPHONE).stack).all()


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batches_do_not_change_features(batch):
    windows = speechlike(TELEPHONE, 9)
    whole = extract(windows, TELEPHONE).stack
    parts = np.concatenate([extract(windows[k : k + batch], TELEPHONE).stack for k in range(0, 9, batch)])
    np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_only_the_named_features_are_stacked_in_order():
    windows = speechlike(TELEPHONE, 2)
    some = extract(windows, FeatureSettings(names=("tonnetz", "mel"), centred=False)).stack
    every = extract(windows, TELEPHONE).stack
    assert some.shape == (2, 184, 6 + 64)
    np.testing.assert_allclose(some[:, :, :6], every[:, :, -6 - 48 : -48], atol=1e-6)


@pytest.mark.parametrize("f0_hz", [82.0, 125.0, 200.0, 330.0])
def test_pitch_is_heard_through_a_telephone_that_takes_the_fundamental(f0_hz):
    settings = FeatureSettings(names=("mel", "pitch"))
    pitches_hz = 62.5 * 2 ** (np.arange(48) / 16)
    t = np.arange(settings.window_samples) / 8000
    voice = sum(np.sin(2 * np.pi * k * f0_hz * t) / k for k in range(1, int(3400 / f0_hz)) if k * f0_hz > 300)
    windows = np.stack([voice, 0.01 * voice, np.random.default_rng(0).standard_normal(t.size)]).astype(np.float32)
    loud, quiet, noise = extract(0.1 * windows, settings).stack[:, :, 64:]
    assert abs(np.log2(pitches_hz[loud.mean(axis=0).argmax()] / f0_hz)) <= 1 / 16
    assert loud.mean(axis=0).max() > 0.3 > 3 * noise.mean(axis=0).max()
    np.testing.assert_allclose(quiet, loud, atol=1e-3)  # level is not heard


def test_pitch_is_the_autocorrelation_of_the_compressed_spectrum_at_a_pitchs_period():
    settings = FeatureSettings(names=("mel", "pitch"), num_pitches=3)  # periods of 128, 64 and 32 samples
    window = speechlike(settings, 1)
    spectrum = np.abs(librosa.stft(window[0], n_fft=512, hop_length=128, center=False)) ** 0.5
    bins_hz = librosa.fft_frequencies(sr=8000, n_fft=512)
    spectrum *= (np.exp(-((bins_hz / 900) ** 2)) * (bins_hz > 80) * (bins_hz <= 1800))[:, None]
    assert spectrum.sum(axis=0).min() > 10 ** (-55 / 40) * spectrum.sum(axis=0).max()  # fading is another test's
    lagged = np.fft.irfft(spectrum, axis=0)
    expected = (lagged / lagged[0])[[128, 64, 32]].T
    np.testing.assert_allclose(extract(window, settings).stack[0, :, 64:], expected, atol=1e-4)


@pytest.mark.parametrize("pause", ["silence", "idle code", "hum"])
def test_pauses_have_next_to_no_pitch(pause):
    settings, t = FeatureSettings(names=("mel", "pitch")), np.arange(8000) / 8000
    window = speechlike(settings, 1)
    hum = 1e-5 * sum(np.sin(2 * np.pi * 100 * k * t) for k in range(1, 15))
    window[:, 8000:16000] = {"silence": 0.0, "idle code": 8 / 32768, "hum": hum}[pause]  # A-law's code for 0 is 8
    pauses = extract(window, settings).stack[0, 63:120, 64:]
    assert np.abs(pauses).max() < (0.2 if pause == "hum" else 0.02)  # hum: 0.53 were it alone


def test_pitch_stays_beside_what_is_centred_and_ends_with_the_sound():
    settings, mel = FeatureSettings(names=("mel", "pitch"), keep_colour=True), FeatureSettings(keep_colour=True)
    windows = speechlike(settings, 2)
    frames = np.array([184, 60], np.int32)
    stack = extract(windows, settings).stack
    read = network_input(stack, frames, settings)
    assert (settings.num_features, settings.num_bands) == (64 + 48, 64)
    np.testing.assert_allclose(read[:, :, :64], network_input(stack[:, :, :64], frames, mel))
    np.testing.assert_array_equal(read[0, :, 64:], stack[0, :, 64:])
    np.testing.assert_array_equal(read[1, :60, 64:], stack[1, :60, 64:])
    assert not read[1, 60:, 64:].any()


def test_level_and_colour_are_taken_out():
    settings = FeatureSettings()
    windows = speechlike(settings, 2)
    frames = np.full(2, settings.num_frames, np.int32)
    quiet, loud = (extract(windows * gain, settings).mel_db for gain in (0.25, 4.0))
    np.testing.assert_allclose(centre(loud, frames, settings), centre(quiet, frames, settings), atol=0.02)
    np.testing.assert_allclose(level_below_peak(loud, frames, 80.0), level_below_peak(quiet, frames, 80.0), atol=1e-3)


def test_colour_is_kept_on_request_and_level_taken_out_all_the_same():
    kept, settings = FeatureSettings(keep_colour=True, centred_min_db=-45.0), FeatureSettings()
    assert (kept.around_zero, settings.around_zero) == (False, True)
    windows = speechlike(settings, 2)
    frames = np.full(2, settings.num_frames, np.int32)
    quiet, loud = (extract(windows * gain, kept).mel_db for gain in (0.25, 4.0))
    np.testing.assert_allclose(centre(loud, frames, kept), centre(quiet, frames, kept), atol=0.02)
    brighter = quiet + np.linspace(-6, 6, 64, dtype=np.float32)
    slope = np.polyfit(np.arange(64), (centre(brighter, frames, kept) - centre(quiet, frames, kept)).mean((0, 1)), 1)[0]
    assert slope == pytest.approx(12 / 63, rel=0.2)
    assert np.abs(centre(brighter, frames, settings) - centre(quiet, frames, settings)).mean() < 0.5


def test_padding_and_silence_are_outside_the_mean():
    settings = FeatureSettings()
    windows = speechlike(settings, 1)
    windows[:, 9000:] = 0
    tail, whole = (frames_inside(np.array([n], np.int32), settings) for n in (9000, 24_000))
    assert tail.tolist() == [1 + (9000 - 512) // 128]
    mel_db = extract(windows, settings).mel_db
    out = centre(mel_db, tail, settings)
    assert (out[0, tail[0] :] == out[0].min(axis=0)).all()  # padding is as silent as can be
    # But for the frames over the edge, silence behind the speech changes nothing (a mean over all frames: 20 dB).
    np.testing.assert_allclose(out[0, : tail[0]], centre(mel_db, whole, settings)[0, : tail[0]], atol=1.5)
    assert (level_below_peak(mel_db, tail, 80.0)[0, tail[0] :] == -1).all()


def test_a_noisy_lines_pauses_look_like_a_clean_ones():
    settings = FeatureSettings()
    windows = speechlike(settings, 1)
    windows[:, 8000:16_000] = 0
    hiss = 1e-4 * np.random.default_rng(0).standard_normal(windows.shape).astype(np.float32)
    frames = np.full(1, settings.num_frames, np.int32)
    clean, noisy = (centre(extract(w, settings).mel_db, frames, settings) for w in (windows, windows + hiss))
    assert np.abs(clean - noisy)[0, 66:120].max() < 1
    assert clean.min() >= settings.centred_min_db


def test_a_window_without_a_frame_is_centred_to_silence():
    settings = FeatureSettings()
    out = centre(np.full((1, settings.num_frames, 64), -100, np.float32), np.zeros(1, np.int32), settings)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("num_samples", [0, 1, 511, 512, 24_000])
def test_frames_inside_counts_whole_frames(num_samples):
    expected = len(range(0, num_samples - 511, 128))
    assert frames_inside(np.array([num_samples], np.int32), FeatureSettings()).tolist() == [expected]


# --------------------------------------------------------------------------------- as the published systems have it


def test_a_shorter_hamming_taper_lies_in_the_middle_of_the_frame_as_librosas():
    settings = FeatureSettings(
        rate_hz=16_000, fft_samples=1024, hop_samples=256, taper="hamming", taper_samples=512, num_mels=128,
        mel_min_hz=0.0, mel_max_hz=8000.0, num_contrast_bands=5, below_peak=True, centred=False,
    )  # fmt: skip
    window = speechlike(settings, 1)
    magnitude = np.abs(
        librosa.stft(window[0], n_fft=1024, hop_length=256, win_length=512, window="hamming", center=False)
    )
    mel = librosa.feature.melspectrogram(S=magnitude**2, sr=16_000, n_fft=1024, n_mels=128, fmin=0.0, fmax=8000.0)
    np.testing.assert_allclose(
        extract(window, settings).stack[0], librosa.power_to_db(mel, ref=np.max, top_db=80.0).T, atol=2e-3
    )


@pytest.mark.parametrize("num_samples", [24_000, 20_000, 700, 512, 100])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_steps_are_means_over_equal_stretches_of_the_frames_inside(num_samples, steps):
    settings = FeatureSettings(names=("mfcc",), num_mfcc=13, steps=steps, centred=False)
    windows = speechlike(settings, 2)
    windows[:, num_samples:] = 0
    frames = frames_inside(np.array([num_samples, 24_000], np.int32), settings)
    stack = extract(windows, settings).stack
    read = network_input(stack, frames, settings)
    assert read.shape == (2, steps, 13)
    inside = stack[0, : max(1, frames[0])]
    if steps <= len(inside):
        edges = np.linspace(0, len(inside), steps + 1).astype(int)
        expected = [inside[a:b].mean(axis=0) for a, b in itertools.pairwise(edges)]
        np.testing.assert_allclose(read[0], expected, atol=1e-3)
    assert np.isfinite(read).all()
    alone = network_input(stack[:1], frames[:1], settings)
    np.testing.assert_allclose(read[:1], alone, atol=1e-4)  # whatever it is batched with


PROSODIC = FeatureSettings(
    names=("prosody", "centroid", "rolloff", "flux", "mfcc_mean", "mfcc_deviation"), rate_hz=48_000, fft_samples=2048,
    hop_samples=512, num_mels=128, num_mfcc=13, num_contrast_bands=6, mel_min_hz=0.0, mel_max_hz=24_000.0,
    centred=False,
)  # fmt: skip


def test_statistics_of_a_window_are_librosas_and_praats():
    import parselmouth

    window = speechlike(PROSODIC, 1)
    window[0, :30_000] = 0  # silent ends are trimmed
    found = dict(zip(PROSODY, extract(window, PROSODIC).stack[0, 0, : len(PROSODY)], strict=True))
    y, (first, end) = librosa.effects.trim(window[0], top_db=40, frame_length=2048, hop_length=512)
    assert first > 25_000
    rms = librosa.feature.rms(y=y, frame_length=2048, hop_length=512)
    pitch = parselmouth.Sound(y.astype(np.float64), 48_000).to_pitch(pitch_floor=50, pitch_ceiling=500)
    f0 = pitch.selected_array["frequency"]
    expected = {
        "duration_s": (end - first) / 48_000, "peak_amplitude": np.abs(y).max(), "rms_mean": rms.mean(),
        "rms_std": rms.std(), "pitch_mean": f0[f0 > 0].mean(), "pitch_median": np.median(f0[f0 > 0]),
        "pitch_variation": 100 * f0[f0 > 0].std() / f0[f0 > 0].mean(), "voiced_ratio": (f0 > 0).mean(),
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert 90 < found["pitch_mean"] < 320
    assert found["jitter"] > 0
    assert found["shimmer"] > 0
    mfcc = librosa.feature.mfcc(
        S=librosa.power_to_db(librosa.feature.melspectrogram(y=y, sr=48_000, n_fft=2048, hop_length=512)), n_mfcc=13
    )
    np.testing.assert_allclose(extract(window, PROSODIC).stack[0, 0, -26:-13], mfcc.mean(axis=1), rtol=1e-3, atol=0.05)


def test_a_click_silence_and_hiss_have_finite_statistics():
    windows = np.zeros((3, PROSODIC.window_samples), np.float32)
    windows[1, 700:710] = 0.5
    windows[2] = 0.01 * np.random.default_rng(0).standard_normal(PROSODIC.window_samples)
    stack = extract(windows, PROSODIC).stack
    assert stack.shape == (3, 1, PROSODIC.num_features)
    assert np.isfinite(stack).all()
    assert not stack[0].any()
    np.testing.assert_allclose(log_mel(windows, PROSODIC), extract(windows, PROSODIC).mel_db, atol=1e-4)


def test_prosody_without_praat_is_told_before_anything_starts(monkeypatch):
    monkeypatch.setitem(sys.modules, "parselmouth", None)
    with pytest.raises(ConfigError, match=r"prosody needs Praat.*pip install 'batchser\[prosody\]'"):
        check_libraries(PROSODIC)
    check_libraries(FeatureSettings())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"names": ("mel", "prosody")}, "features.names: received"),
        ({"taper": "kaiser"}, "features.taper: received 'kaiser', expected one of hann, hamming"),
        ({"taper_samples": 600}, r"features.taper_samples: received 600, expected 0 to fft_samples \(512\)"),
        ({"steps": 4}, "features.steps: received 4"),
        ({"centred": False, "keep_colour": True}, "features.keep_colour: received true without centred"),
        ({"names": ("pitch", "mel")}, "features.centred: received true .* for mel alone, or mel and pitch"),
        ({"names": ("mel", "pitch"), "pitch_min_hz": 600.0}, "received 48 pitches from 600.0 to 500.0 Hz"),
        ({"names": ("mel", "pitch"), "pitch_max_hz": 2500.0}, r"two periods in a frame\) to 2000 Hz"),
        ({"names": ("mel", "pitch"), "fft_samples": 128}, "rising, from 125 Hz on"),
        ({"keep_colour": "no"}, "features.keep_colour: received 'no', expected true or false"),
    ],
)
def test_features_that_contradict_each_other_are_told(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        FeatureSettings(**changes)
