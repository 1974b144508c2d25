"""Augmentation: codecs and their delays, lines, degradations, rooms and noises, all from their seed alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import RATE_HZ, noise, silence, speechlike

from batchser.errors import ConfigError
from batchser.training import codecs, line
from batchser.training.degradations import DEGRADATIONS, available


def power_db(samples: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-20))


def delay_s(later: np.ndarray, earlier: np.ndarray, rate_hz: int) -> float:
    """By how much ``later`` lags, where the two correlate most."""
    size = 2 * max(later.size, earlier.size)
    spectrum = np.fft.rfft(later, size) * np.conj(np.fft.rfft(earlier, size))
    lag = int(np.argmax(np.fft.irfft(spectrum, size)))
    return (lag if lag < size // 2 else lag - size) / rate_hz


# ------------------------------------------------------------------------------------------------------- codecs


@pytest.mark.parametrize(("rate_hz", "num_samples"), [(8000, 16_000), (8000, 15_963), (16_000, 24_001), (11_025, 9999)])
@pytest.mark.parametrize("name", codecs.CODECS)
def test_a_round_trip_keeps_length_and_place(name, rate_hz, num_samples):
    if name not in codecs.encoders():
        pytest.skip(f"no encoder for {name} here")
    samples = line.band_pass(speechlike(3.2, 4, rate_hz), rate_hz)[:num_samples]
    decoded = codecs.round_trip(samples, rate_hz, name)
    assert decoded.shape == samples.shape
    assert decoded.dtype == np.float32
    assert np.isfinite(decoded).all()
    assert abs(delay_s(decoded, samples, rate_hz)) < 0.002
    assert power_db(decoded) == pytest.approx(power_db(samples), abs=4.0)  # AMR fits speech, not this
    half = num_samples // 2  # neither the beginning nor the end is lost
    for part in (slice(half - half // 2), slice(half + half // 2, None)):
        assert power_db(decoded[part]) == pytest.approx(power_db(samples[part]), abs=5.0)
    np.testing.assert_array_equal(decoded, codecs.round_trip(samples, rate_hz, name))


@pytest.mark.parametrize(
    ("name", "least_snr_db"),
    [("pcm16", 60), ("mu-law", 30), ("a-law", 30), ("g722", 20), ("g726-32k", 12), ("mp3-16k", 5), ("gsm-6.10", 3)],
)
def test_a_codec_loses_no_more_than_it_must(name, least_snr_db):
    samples = line.band_pass(speechlike(1.0, 4), RATE_HZ)[: RATE_HZ - 37]
    error = codecs.round_trip(samples, RATE_HZ, name) - samples
    assert power_db(samples) - power_db(error) > least_snr_db


@pytest.mark.parametrize("num_samples", [0, 1, 7, 161])
@pytest.mark.parametrize("name", codecs.CODECS)
def test_a_round_trip_may_be_short(name, num_samples):
    if name not in codecs.encoders():
        pytest.skip(f"no encoder for {name} here")
    decoded = codecs.round_trip(np.full(num_samples, 0.1, np.float32), RATE_HZ, name)
    assert decoded.shape == (num_samples,)
    assert np.isfinite(decoded).all()


def test_what_is_too_loud_is_clipped_before_it_is_encoded():
    decoded = codecs.round_trip(np.float32([0.5, 3.0, -7.0]), RATE_HZ, "pcm16")
    assert decoded == pytest.approx([0.5, 1, -1], abs=1e-4)


def test_libsndfiles_codecs_and_opus_are_always_there():
    assert codecs.encoders() == [name for name in codecs.CODECS if name in codecs.encoders()]
    assert {"mu-law", "a-law", "pcm16", "gsm-6.10", "g726-32k", "opus-12k", "mp3-16k"} <= set(codecs.encoders())


def test_an_unknown_codec_and_one_without_encoder_are_told(monkeypatch):
    with pytest.raises(ConfigError, match="codec: received 'evs', expected one of mu-law, a-law"):
        codecs.round_trip(noise(0.1), RATE_HZ, "evs")
    lacking = dataclasses.replace(codecs.CODECS["amr-12.2k"], name="none", available=lambda: False)
    monkeypatch.setattr(codecs, "CODECS", {**codecs.CODECS, "none": lacking})
    assert "none" not in codecs.encoders()
    with pytest.raises(ConfigError, match="codec none: the installed libsndfile and FFmpeg have no encoder"):
        codecs.round_trip(noise(0.1), RATE_HZ, "none")


# -------------------------------------------------------------------------------------------------------- lines


def test_a_band_keeps_what_is_inside():
    t = np.arange(RATE_HZ) / RATE_HZ
    low, inside = (line.band_pass(np.sin(2 * np.pi * hz * t), RATE_HZ)[2000:].std() for hz in (60, 1000))
    assert low < 0.02 * inside


def test_a_level_is_the_one_asked_for_and_silence_stays_silent():
    assert power_db(line.scale_to(speechlike(1.0, 4), -26.0)) == pytest.approx(-26, abs=0.01)
    assert not line.scale_to(silence(1), -26.0).any()


def test_the_active_level_does_not_count_pauses():
    speech = speechlike(3.0, 4)
    active = line.active_level_dbfs(speech, RATE_HZ)
    assert active == pytest.approx(power_db(speech), abs=1.5)
    paused = np.concatenate([silence(4.0), speech, 1e-3 * noise(5.0)]).astype(np.float32)
    assert line.active_level_dbfs(paused, RATE_HZ) == pytest.approx(active, abs=0.1)
    assert line.active_level_dbfs(paused / 10, RATE_HZ) == pytest.approx(active - 20, abs=0.1)
    assert line.active_level_dbfs(silence(1.0), RATE_HZ) == -100
    assert line.active_level_dbfs(speech[:10], RATE_HZ) == pytest.approx(power_db(speech[:10]), abs=0.01)


@pytest.mark.parametrize("snr_db", [0, 10, 35])
def test_noise_is_added_at_the_ratio_asked_for(snr_db):
    speech = np.concatenate([silence(2.0), speechlike(2.0, 4)])
    added = line.add_noise(speech, noise(4.0, 3), snr_db, RATE_HZ) - speech
    assert line.active_level_dbfs(speech, RATE_HZ) - power_db(added) == pytest.approx(snr_db, abs=0.01)
    assert not line.add_noise(silence(1.0), noise(1.0), snr_db, RATE_HZ).any()


@pytest.mark.parametrize("concealed", [True, False])
def test_packets_are_lost_in_bursts_and_as_many_as_asked_for(concealed):
    heard = line.lose_packets(
        np.random.default_rng(1), np.ones(20_000 * 160, np.float32), RATE_HZ, 0.05, 2.0, concealed
    )
    packets = heard.reshape(-1, 160)
    assert (packets == packets[:, :1]).all()
    lost = packets[:, 0] < 1
    assert lost.mean() == pytest.approx(0.05, abs=0.01)
    bursts = np.diff(lost.astype(int)).clip(0).sum()
    assert lost.sum() / bursts == pytest.approx(2.0, abs=0.3)
    repeated = (packets[:, 0] == 0.5).sum()
    assert repeated == pytest.approx(bursts if concealed else 0, abs=1)


@pytest.mark.parametrize("num_samples", [0, 1, 159, 160, 161, 400])
def test_packets_are_lost_of_any_number_of_samples(num_samples):
    samples = np.ones(num_samples, np.float32)
    for seed in range(5):
        heard = line.lose_packets(np.random.default_rng(seed), samples, RATE_HZ, 0.5)
        assert heard.shape == samples.shape
    assert samples.all()  # the caller's own are left alone


# ------------------------------------------------------------------------------------------------- degradations


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_a_degradation_keeps_length_and_comes_from_its_seed(name):
    if name not in available():
        pytest.skip(f"no encoder for {name} here")
    for rate_hz, num_samples in ((8000, 8000), (8000, 8037), (16_000, 16_001), (8000, 5)):
        samples = speechlike(1.1, 4, rate_hz)[:num_samples]
        original = samples.copy()
        heard, again, other = (
            DEGRADATIONS[name].apply(np.random.default_rng(seed), samples, rate_hz) for seed in (3, 3, 4)
        )
        assert heard.shape == samples.shape
        assert heard.dtype == np.float32
        assert np.isfinite(heard).all()
        np.testing.assert_array_equal(heard, again)
        np.testing.assert_array_equal(samples, original)
        if num_samples > 100:
            assert np.array_equal(heard, other) != name.startswith(("noise", "packet"))


def test_the_table_has_the_degradations_in_its_order():
    names = [
        "clean",
        "mu-law",
        "gsm-6.10",
        "opus-12k",
        "mp3-16k",
        "amr-12.2k",
        "noise-20db",
        "noise-10db",
        "packet-loss",
    ]
    assert list(DEGRADATIONS) == names
    assert [name for name in names if name in available()] == available()
    assert set(names) - set(available()) <= {"amr-12.2k"}
    assert all("300–3400 Hz" in DEGRADATIONS[name].describe for name in names[1:])


def test_degradations_do_what_they_say():
    speech = speechlike(3.0, 4)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(DEGRADATIONS["clean"].apply(rng, speech, RATE_HZ), speech)
    coded = DEGRADATIONS["mu-law"].apply(rng, speech, RATE_HZ)
    for snr_db in (10, 20):
        added = DEGRADATIONS[f"noise-{snr_db}db"].apply(rng, speech, RATE_HZ) - coded
        assert line.active_level_dbfs(coded, RATE_HZ) - power_db(added) == pytest.approx(snr_db, abs=1)
    lost = DEGRADATIONS["packet-loss"].apply(rng, speech, RATE_HZ)
    changed = (lost != coded).reshape(-1, 160).any(axis=1).mean()
    assert 0 < changed < 0.2
