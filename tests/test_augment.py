"""Augmentation: codecs and their delays, lines, degradations, rooms and noises, all from their seed alone."""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Callable

import numpy as np
import pytest
from conftest import RATE_HZ, noise, silence, speechlike, write

from batchser.errors import ConfigError
from batchser.training import augment
from batchser.training.augment import AugmentSettings, Sounds, Voice, chain, codecs, line, sounds
from batchser.training.evaluate.degradations import DEGRADATIONS, available

#: A line without anything on it, of which tests switch on what they are about.
NOTHING = AugmentSettings(
    band_pass_probability=0, noise_probability=0, packet_loss_probability=0, room_probability=0,
    background_probability=0, level_db=(0.0, 0.0), codecs={"pcm16": 1.0},
)  # fmt: skip
PCM_STEP = 1 / 32768


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


@pytest.mark.parametrize(
    ("hz", "db"), [(250, -6), (1000, 0), (2000, 3), (3000, 3 * np.log2(3)), (50, 3 * np.log2(0.1))]
)
def test_a_handset_colours_by_the_octave(hz, db):
    t = np.arange(RATE_HZ) / RATE_HZ
    tones = (np.sin(2 * np.pi * 1000 * t) + np.sin(2 * np.pi * hz * t)).astype(np.float32)
    coloured = line.colour(tones, RATE_HZ, 3.0)
    assert (coloured.shape, coloured.dtype) == (tones.shape, tones.dtype)
    assert power_db(coloured) == pytest.approx(power_db(tones), abs=0.01)  # as loud as before
    at_hz, at_1000 = np.abs(np.fft.rfft(coloured))[[hz, 1000]]
    assert 20 * np.log10(at_hz / at_1000) == pytest.approx(db, abs=0.01)
    assert not line.colour(silence(0.1), RATE_HZ, 3.0).any()


def test_a_line_has_a_handsets_colour_on_request_only():
    plain = AugmentSettings(
        band_pass_probability=0, noise_probability=0, packet_loss_probability=0, level_db=(0, 0), codecs={"pcm16": 1}
    )
    bright = dataclasses.replace(plain, colour_db_per_octave=(3.0, 3.0))
    samples = speechlike(1.0, 4)
    as_is, coloured = (
        augment.telephone(np.random.default_rng(1), samples, RATE_HZ, settings) for settings in (plain, bright)
    )
    np.testing.assert_allclose(as_is, samples, atol=1e-3)
    np.testing.assert_allclose(coloured, line.colour(samples, RATE_HZ, 3.0), atol=1e-3)


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


# ------------------------------------------------------------------------------------------------------- voices


def test_a_voice_is_as_much_faster_higher_and_longer_as_asked_for():
    t = np.arange(2 * RATE_HZ) / RATE_HZ
    tone = np.sin(2 * np.pi * 400 * t).astype(np.float32)

    def hz(samples: np.ndarray) -> float:
        middle = samples[RATE_HZ // 2 : RATE_HZ // 2 + 4096] * np.hanning(4096)
        return float(np.argmax(np.abs(np.fft.rfft(middle)))) * RATE_HZ / 4096

    assert Voice().change(tone, RATE_HZ) is tone
    for voice, seconds, pitch_hz in (
        (Voice(speed=1.1), 2 / 1.1, 440),
        (Voice(semitones=12.0), 2, 800),
        (Voice(semitones=-2.0), 2, 356),
        (Voice(stretch=0.8), 2.5, 400),
        (Voice(stretch=1.25), 1.6, 400),
        (Voice(speed=0.9, semitones=3.0, stretch=1.1), 2 / 0.9 / 1.1, 428),
    ):
        changed = voice.change(tone, RATE_HZ)
        assert changed.dtype == np.float32
        assert changed.size == pytest.approx(seconds * RATE_HZ, abs=2)
        assert hz(changed) == pytest.approx(pitch_hz, abs=4)


@pytest.mark.parametrize(
    "voice", [Voice(semitones=-12.0), Voice(stretch=0.5), Voice(stretch=2.0), Voice(0.88, 1.0, 1.1)]
)
def test_a_voice_is_changed_alike_whatever_the_global_generators_say_and_they_stay(voice):
    speech = speechlike(1.0, 4)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  the library's own
    first = voice.change(speech, RATE_HZ)
    drawn = random.random(), np.random.random()  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert drawn == (random.random(), np.random.random())  # noqa: NPY002
    np.testing.assert_array_equal(voice.change(speech, RATE_HZ), first)
    assert voice.change(speech[:50], RATE_HZ).size > 10


def test_voices_are_drawn_from_their_settings():
    rng = np.random.default_rng(0)
    settings = AugmentSettings(speeds=(0.9, 1.2), pitch_probability=0.5, stretch_probability=0.25)
    voices = [augment.draw_voice(rng, settings) for _ in range(400)]
    assert {voice.speed for voice in voices} == {0.9, 1.2}
    shifted = [voice.semitones for voice in voices if voice.semitones]
    stretched = [voice.stretch for voice in voices if voice.stretch != 1]
    assert len(shifted) == pytest.approx(200, abs=50)
    assert len(stretched) == pytest.approx(100, abs=40)
    assert -2 <= min(shifted) < -1.5 < 1.5 < max(shifted) <= 2
    assert 0.9 <= min(stretched) < 0.92 < 1.08 < max(stretched) <= 1.1
    plain = AugmentSettings()
    assert {augment.draw_voice(rng, plain) for _ in range(60)} == {Voice(speed) for speed in plain.speeds}


def test_without_the_extra_pitch_and_tempo_are_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "audiomentations", None)
    for call in (
        lambda: Voice(semitones=1.0).change(speechlike(0.1), RATE_HZ),
        lambda: AugmentSettings(stretch_probability=0.1).check_libraries(),
    ):
        with pytest.raises(ConfigError, match=r"pip install 'batchser\[train\]'"):
            call()
    AugmentSettings().check_libraries()
    augment.telephone(np.random.default_rng(0), speechlike(0.5), RATE_HZ)


# ----------------------------------------------------------------------------------------------------- settings


def test_settings_out_of_range_are_told_all_at_once():
    with pytest.raises(ConfigError) as raised:
        AugmentSettings(
            speeds=(), noise_probability=1.5, low_hz=(300.0, 200.0), level_db=(1.0,), stretch="much", codecs={"evs": 1}
        )  # type: ignore[arg-type]
    assert raised.value.faults == (
        "augment.noise_probability: received 1.5, expected 0 to 1",
        "augment.stretch: received 'much', expected two rising numbers from 0.5 to 2",
        "augment.low_hz: received (300.0, 200.0), expected two rising numbers from 10 to 1000",
        "augment.level_db: received (1.0,), expected two rising numbers from -60 to 40",
        "augment.speeds: received (), expected factors from 0.5 to 2",
        "augment.codecs: received evs, expected some of " + ", ".join(codecs.CODECS),
    )
    for weights in ({}, {"mu-law": 0}, {"mu-law": -1.0}, {"mu-law": "often"}, 3):
        with pytest.raises(ConfigError, match=r"augment\.codecs: received .* expected a"):
            AugmentSettings(codecs=weights)


def test_a_codec_without_encoder_is_told_before_the_run(monkeypatch):
    monkeypatch.setattr(codecs, "encoders", lambda: ["mu-law", "pcm16"])
    with pytest.raises(ConfigError) as raised:
        AugmentSettings(codecs={"mu-law": 1, "amr-12.2k": 0.5, "opus-12k": 0, "gsm-6.10": 0.1}).check_libraries()
    assert [fault.split(":")[1] for fault in raised.value.faults] == [" amr-12.2k", " gsm-6.10"]


# ---------------------------------------------------------------------------------------------- sounds from files


def test_sounds_are_read_and_rooms_begin_at_their_direct_sound(tmp_path):
    for name in ("noise", "music", "rooms"):
        (tmp_path / name).mkdir()
    write(tmp_path / "noise" / "a.wav", 0.5 * noise(1.0, 1), 0.5 * noise(1.0, 2))
    write(tmp_path / "music" / "b.wav", speechlike(2.0, 1, 16_000), rate_hz=16_000)
    response = np.zeros(RATE_HZ, np.float32)
    response[800], response[1200] = -0.5, 0.25  # after 100 ms, upside down; one echo 50 ms later
    write(tmp_path / "rooms" / "c.wav", response, np.roll(response, 7))
    (tmp_path / "rooms" / "README.md").write_text("licences")
    found = augment.read_sounds(tmp_path / "noise", tmp_path / "music", tmp_path / "rooms", RATE_HZ)
    assert [sound.shape for sound in found.noise] == [(RATE_HZ,)]
    assert [sound.size for sound in found.music] == [pytest.approx(2 * RATE_HZ, abs=2)]
    assert len(found.rooms) == 2
    for room in found.rooms:
        assert room.dtype == np.float32
        assert room.shape == (401,)
        assert (room[0], room[400]) == pytest.approx((1.0, -0.5), abs=1e-3)
    assert augment.read_sounds(None, None, None, RATE_HZ) == Sounds([], [], [])


def test_folders_and_files_that_hold_no_sound_are_told_all_at_once(tmp_path):
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "broken.wav").write_bytes(b"RIFF not a wave file")
    write(tmp_path / "music" / "still.wav", silence(1.0))
    with pytest.raises(ConfigError) as raised:
        augment.read_sounds(tmp_path / "none", tmp_path / "music", None, RATE_HZ)
    assert len(raised.value.faults) == 3
    for fault, text in zip(raised.value.faults, ("none holds no sound files", "broken.wav", "silent"), strict=True):
        assert text in fault


def test_a_room_adds_no_delay_and_no_level():
    speech = speechlike(2.0, 4)
    rng = np.random.default_rng(0)
    tail = rng.standard_normal(4000) * np.exp(-np.arange(4000) / 800) / 8
    response = np.concatenate([np.zeros(500), [1.0], tail]).astype(np.float32)
    heard = chain.in_room(speech, chain._room(response))
    assert heard.shape == speech.shape
    assert delay_s(heard, speech, RATE_HZ) == 0
    assert power_db(heard) == pytest.approx(power_db(speech), abs=0.01)
    assert not np.allclose(heard, speech, atol=1e-3)
    assert not chain.in_room(silence(1.0), response).any()
    np.testing.assert_allclose(chain.in_room(speech, np.ones(1, np.float32)), speech, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- telephone


def on_line(samples: np.ndarray, seed: int = 0, found: Sounds | None = None, **changed: object) -> np.ndarray:
    settings = dataclasses.replace(NOTHING, **changed)
    return augment.telephone(np.random.default_rng(seed), samples, RATE_HZ, settings, found)


def test_a_line_with_nothing_on_it_changes_nothing():
    speech = speechlike(1.0, 4)
    np.testing.assert_allclose(on_line(speech), speech, atol=PCM_STEP)


@pytest.mark.parametrize("snr_db", [10.0, 25.0])
def test_line_noise_and_sounds_behind_the_voice_lie_as_far_below_speech_as_asked_for(snr_db):
    speech = np.concatenate([silence(1.5), speechlike(1.5, 4)])  # half of the window is silent
    found = Sounds(noise=[noise(0.7, 1)], music=[noise(9.0, 2)])
    level_dbfs = line.active_level_dbfs(speech, RATE_HZ)
    for changed in (
        {"noise_probability": 1.0, "noise_snr_db": (snr_db, snr_db)},
        {"background_probability": 1.0, "background_snr_db": (snr_db, snr_db)},
        {"music_probability": 1.0, "music_snr_db": (snr_db, snr_db)},
    ):
        added = [on_line(speech, seed, found, **changed) - speech for seed in (1, 2)]
        assert level_dbfs - power_db(added[0]) == pytest.approx(snr_db, abs=0.5)
        assert not np.allclose(*added, atol=1e-3)


def test_a_silent_line_hisses_but_has_no_sounds_behind_a_voice():
    hiss = on_line(silence(2.0), noise_probability=1.0, noise_snr_db=(20.0, 20.0))
    assert power_db(hiss) == pytest.approx(-46, abs=0.5)
    assert not on_line(silence(2.0), found=Sounds(noise=[noise(1.0)]), background_probability=1.0).any()


def test_each_part_of_the_line_does_what_its_settings_say():
    speech = speechlike(2.0, 4)
    band = on_line(speech, band_pass_probability=1.0, low_hz=(300.0, 300.0), high_hz=(3400.0, 3400.0))
    np.testing.assert_allclose(band, line.band_pass(speech, RATE_HZ), atol=PCM_STEP)
    quieter = on_line(speech, level_db=(-6.0, -6.0))
    assert power_db(quieter) == pytest.approx(power_db(speech) - 6, abs=0.1)
    assert np.abs(on_line(speech, level_db=(40.0, 40.0))).max() <= 1
    lost = on_line(speech, packet_loss_probability=1.0, packet_loss_share=(0.3, 0.3))
    assert 0.1 < (np.abs(lost - speech) > PCM_STEP).reshape(-1, 160).any(axis=1).mean() < 0.6
    room = np.zeros(500, np.float32)
    room[0], room[400] = 1, 0.8
    echo = on_line(speech, found=Sounds(rooms=[room]), room_probability=1.0)
    np.testing.assert_allclose(echo, chain.in_room(speech, room), atol=PCM_STEP)
    coded = on_line(speech, codecs={"gsm-6.10": 1.0, "mu-law": 0.0})
    np.testing.assert_array_equal(coded, codecs.round_trip(speech, RATE_HZ, "gsm-6.10"))


def test_the_band_is_the_librarys():
    audiomentations = pytest.importorskip("audiomentations")
    middle_hz, part = 1850.0, 3100 / 1850
    theirs = audiomentations.BandPassFilter(
        middle_hz, middle_hz, part, part, min_rolloff=24, max_rolloff=24, zero_phase=False, p=1.0
    )
    speech = speechlike(1.0, 4)
    ours = line.band_pass(speech, RATE_HZ)
    np.testing.assert_allclose(theirs(speech, RATE_HZ)[2000:], ours[2000:], atol=1e-5)  # it begins as if never silent


# -------------------------------------------------------------------------------------------- sounds made by code

SOUNDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "telephone": lambda rng, size: augment.telephone(rng, speechlike(1.0, 1)[:size], RATE_HZ),
    "all of it": lambda rng, size: augment.telephone(rng, speechlike(1.0, 1)[:size], RATE_HZ, ALL, FOUND),
    "tone": lambda rng, size: sounds.tone(rng, size, RATE_HZ),
    "composed_music": lambda rng, size: sounds.composed_music(rng, size, RATE_HZ),
    "generated_noise": lambda rng, size: sounds.generated_noise(rng, size, RATE_HZ),
    "coloured_noise": lambda rng, size: sounds.coloured_noise(rng, size, 1.0),
}
ALL = AugmentSettings(room_probability=0.9, background_probability=0.9, music_probability=0.9, noise_probability=0.9)
FOUND = Sounds([noise(0.4, 1)], [noise(0.2, 2)], [np.float32([1, 0.5, -0.2])])


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_are_finite_and_come_from_their_seed_alone(name):
    make = SOUNDS[name]
    drawn = [make(np.random.default_rng(seed), RATE_HZ) for seed in range(12)]
    for seed, samples in enumerate(drawn):
        assert samples.shape == (RATE_HZ,)
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() <= 1 or name == "coloured_noise"
        np.testing.assert_array_equal(samples, make(np.random.default_rng(seed), RATE_HZ))
    assert any(np.abs(samples).max() > 1e-3 for samples in drawn)
    assert not np.array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize("num_samples", [1, 7, 400])
@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_may_be_short(name, num_samples):
    for seed in range(6):
        samples = SOUNDS[name](np.random.default_rng(seed), num_samples)
        assert samples.shape == (num_samples,)
        assert np.isfinite(samples).all()


def test_telephones_leave_the_callers_samples_alone():
    speech = speechlike(1.0, 4)
    kept = speech.copy()
    for seed in range(12):
        augment.telephone(np.random.default_rng(seed), speech, RATE_HZ, ALL, FOUND)
    np.testing.assert_array_equal(speech, kept)
