"""Back to the originals: cuts are the recording's own samples, pictures are of the whole of it."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import test_audio as formats
from conftest import speechlike, write
from hypothesis import given
from hypothesis import strategies as st

from batchser.errors import AudioError
from batchser.listening import Span, _Pooled, cut, draw, encoded, original
from batchser.records import Recording
from batchser.settings import FeatureSettings, Headerless, LimitSettings, TrustSettings

LIMITS = LimitSettings()
FADE_SAMPLES = 240  # 30 ms at 8 kHz


def at(path: Path) -> Recording:
    return Recording(0, path.name, str(path))


def samples_of(sound) -> np.ndarray:
    """A pydub sound as int16 (n, channels)."""
    return np.array(sound.get_array_of_samples()).reshape(-1, sound.channels)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "call.wav"
    write(path, speechlike(70, 1), speechlike(70, 2))
    return path


def test_a_cut_is_the_recordings_own_samples(recording: Path) -> None:
    whole, rate_hz = soundfile.read(recording, dtype="int16", always_2d=True)
    spans = [Span(40.0, 43.0, 1), Span(3.0, 6.0, 0), Span(3.0, 9.0), Span(0.0, 1.5, 1), Span(66.0, 70.0)]
    sounds = dict(cut(at(recording), spans, LIMITS, context_s=1.0))
    assert set(sounds) == set(range(5))
    for number, first_s, end_s in ((0, 39, 44), (1, 2, 7), (2, 2, 10), (3, 0, 2.5), (4, 65, 70)):
        channel = spans[number].channel
        wanted = whole[round(first_s * rate_hz) : round(end_s * rate_hz)]
        wanted = wanted if channel is None else wanted[:, channel : channel + 1]
        got = samples_of(sounds[number])
        assert got.shape == wanted.shape
        inside = slice(FADE_SAMPLES, -FADE_SAMPLES)
        np.testing.assert_allclose(got[inside], wanted[inside], atol=1)
        assert abs(got[0]).max() <= 1 + abs(wanted[0]).max() * 0.01  # it fades in, and out
        assert abs(got[-20:]).max() < 0.1 * max(1, abs(wanted[-400:]).max())
        assert sounds[number].frame_rate == rate_hz


def test_what_lies_behind_the_end_is_left_out(recording: Path) -> None:
    assert [number for number, _ in cut(at(recording), [Span(90, 93, 0), Span(69, 75, 0)], LIMITS)] == [1]


@pytest.mark.parametrize(("file_format", "name"), [("wav", "pcm_s16le"), ("mp3", "mp3")])
def test_encoded_sounds_play(recording: Path, file_format: str, name: str, tmp_path: Path) -> None:
    ((_, sound),) = cut(at(recording), [Span(3, 6)], LIMITS)
    file = tmp_path / f"clip.{file_format}"
    file.write_bytes(encoded(sound, file_format))
    with av.open(file) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name.startswith(name)
        assert stream.codec_context.channels == 2
        seconds = sum(frame.samples for frame in container.decode(stream)) / stream.rate
    assert seconds == pytest.approx(5, abs=0.2)


def test_a_channel_that_is_not_there_is_told(recording: Path) -> None:
    with pytest.raises(AudioError, match="channel 2 was asked for, the recording has 2"):
        list(cut(at(recording), [Span(0, 3, 2)], LIMITS))


def test_originals_outside_of_the_root_are_not_opened(recording: Path, tmp_path: Path) -> None:
    limits = LimitSettings(trust=TrustSettings(root=str(tmp_path)))
    link = tmp_path / "link.wav"
    link.symlink_to(recording)
    for path in (recording, link, tmp_path / ".." / recording.parent.name / recording.name):
        for read in (
            lambda path=path: list(cut(at(path), [Span(0, 3)], limits)),
            lambda path=path: draw(at(path), limits),
        ):
            with pytest.raises(AudioError, match="outside of --root"):
                read()


def test_a_picture_is_of_the_whole_recording(recording: Path) -> None:
    picture = draw(at(recording), LIMITS)
    settings = FeatureSettings()
    assert picture.duration_s == 70
    assert picture.lowest.shape == picture.highest.shape
    assert picture.lowest.shape[1] * picture.wave_column_s == pytest.approx(70, abs=picture.wave_column_s)
    assert picture.mel_db.shape[:2] == (2, settings.num_mels)
    assert picture.mel_db.shape[2] * picture.mel_column_s == pytest.approx(70, abs=2 * picture.mel_column_s)
    whole, _ = soundfile.read(recording, dtype="float32", always_2d=True)
    np.testing.assert_allclose(picture.highest.max(axis=1), whole.max(axis=0), atol=1e-6)
    np.testing.assert_allclose(picture.lowest.min(axis=1), whole.min(axis=0), atol=1e-6)
    assert (picture.mel_db.max(), picture.mel_db.min()) >= (0, -80)
    assert settings.mel_min_hz < picture.mel_hz[0] < picture.mel_hz[-1] < settings.mel_max_hz


def test_a_tone_stands_where_it_sounds(tmp_path: Path) -> None:
    t = np.arange(8000 * 12) / 8000
    tone = np.where((t >= 6) & (t < 9), 0.3 * np.sin(2 * np.pi * 1000 * t), 0).astype(np.float32)
    write(tmp_path / "tone.wav", tone)
    picture = draw(at(tmp_path / "tone.wav"), LIMITS)
    band = int(np.abs(picture.mel_hz - 1000).argmin())
    loud = np.flatnonzero(picture.mel_db[0, band] > -10) * picture.mel_column_s
    assert loud.min() == pytest.approx(6, abs=0.05)
    assert loud.max() == pytest.approx(9, abs=0.08)
    assert abs(int(picture.mel_db[0].max(axis=1).argmax()) - band) <= 1


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_pooled_columns_are_the_extremes_of_equal_parts(pieces: list[int], columns: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(2, sum(pieces), 3)).astype(np.float32)
    pooled = _Pooled(columns)
    for first, last in zip(np.cumsum([0, *pieces]), np.cumsum(pieces), strict=False):
        pooled.add(rows[:, first:last])
    lowest, highest = pooled.columns()
    starts = range(0, rows.shape[1], pooled.unit)
    np.testing.assert_array_equal(lowest, np.stack([rows[:, k : k + pooled.unit].min(axis=1) for k in starts], axis=1))
    np.testing.assert_array_equal(highest, np.stack([rows[:, k : k + pooled.unit].max(axis=1) for k in starts], axis=1))
    assert lowest.shape[1] <= 2 * columns


# ---------------------------------------------------------------------------------------------- without a header


def raw(path: Path, seconds: float = 12, rate_hz: int = 8000) -> Path:
    soundfile.write(path, speechlike(seconds, 3, rate_hz), rate_hz, format="RAW", subtype="ULAW")
    return path


def test_what_has_no_header_is_read_as_stated(tmp_path: Path) -> None:
    path = str(raw(tmp_path / "a.ulaw"))
    with pytest.raises(
        AudioError, match="no known audio header; if it is headerless, say how it is encoded: --encoding"
    ):
        original(path, LIMITS, Headerless())
    found = original(path, LIMITS, Headerless("mulaw"), 12.0)
    assert (found.encoding, found.rate_hz) == ("mulaw", 8000)
    ((_, sound),) = cut(found, [Span(3, 6)], LIMITS)
    assert (len(sound), sound.frame_rate) == (5000, 8000)


def test_another_length_than_it_had_is_told(tmp_path: Path) -> None:
    """A wrong rate would let a listener hear another moment, and label it."""
    path = str(raw(tmp_path / "a.ulaw", 12, 16_000))
    with pytest.raises(
        AudioError, match=r"read as mulaw of 8000 Hz the recording lasts 24.0 s, and lasted 12.0 s when"
    ):
        original(path, LIMITS, Headerless("mulaw"), 12.0)
    assert original(path, LIMITS, Headerless("mulaw", 16_000), 12.0).rate_hz == 16_000


@pytest.mark.parametrize("name", ["noxing.mp3", "adts.aac", "dialogic.vox", "a.wav"])
def test_what_says_itself_how_it_is_encoded_is_read_so_whatever_is_stated(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    match path.suffix:
        case ".mp3":
            formats.write_ffmpeg(path, formats.speechlike(16_000), "mp3", "mp3", 16_000, 0)
            data = path.read_bytes()
            path.write_bytes(data[data.index(b"\xff\xf3") :])  # without its tag
        case ".aac":
            formats.write_ffmpeg(path, formats.speechlike(16_000), "adts", "aac", 16_000, 0)
        case ".vox":
            soundfile.write(path, speechlike(6), 8000, format="RAW", subtype="VOX_ADPCM")
        case _:
            write(path, speechlike(6))
    assert original(str(path), LIMITS, Headerless("mulaw"), 6.0).encoding is None


def test_words_are_no_sound_whatever_is_stated(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no sound at all, only words\n" * 99)
    with pytest.raises(AudioError, match="the file starts with text"):
        original(str(tmp_path / "a.txt"), LIMITS, Headerless("mulaw"))
