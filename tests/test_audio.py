"""Reading recordings: every format that can be written here, damaged headers, halves, limits, and bounded memory."""

import hashlib
import io
import os
import shutil
import struct
import tracemalloc
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
import soundfile as sf
import soxr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from batchser.audio import (
    channels_carry_same_signal,
    open_audio,
    probe,
)
from batchser.audio.headers import FileView, WavLayout, corrected_wav, wav_layout
from batchser.audio.source import Source, check_trusted, open_source
from batchser.errors import AudioError
from batchser.records import AUDIO_SUFFIXES, Recording
from batchser.settings import LimitSettings, TrustSettings

LIMITS = LimitSettings(trust=TrustSettings(protocols=("memory", "nowhere")))
SECONDS = 3

# name, format, subtype, rate: what libsndfile writes
SNDFILE = [
    ("mulaw.wav", "WAV", "ULAW", 8000),
    ("alaw.wav", "WAV", "ALAW", 8000),
    ("pcm8.wav", "WAV", "PCM_U8", 11025),
    ("pcm16.wav", "WAV", "PCM_16", 16000),
    ("pcm24.wav", "WAVEX", "PCM_24", 44100),
    ("pcm32.wav", "WAV", "PCM_32", 48000),
    ("float.wav", "WAV", "FLOAT", 8000),
    ("double.wav", "WAV", "DOUBLE", 8000),
    ("gsm.wav", "WAV", "GSM610", 8000),
    ("ms.wav", "WAV", "MS_ADPCM", 8000),
    ("ima.wav", "WAV", "IMA_ADPCM", 8000),
    ("g721.wav", "WAV", "G721_32", 8000),
    ("long.rf64", "RF64", "PCM_16", 8000),
    ("long.w64", "W64", "PCM_16", 8000),
    ("sun.au", "AU", "ULAW", 8000),
    ("mac.aiff", "AIFF", "PCM_16", 8000),
    ("mac.caf", "CAF", "PCM_16", 8000),
    ("alac.caf", "CAF", "ALAC_16", 8000),
    ("free.flac", "FLAC", "PCM_16", 16000),
    ("vorbis.ogg", "OGG", "VORBIS", 16000),
    ("voice.opus", "OGG", "OPUS", 16000),
    ("music.mp3", "MP3", "MPEG_LAYER_III", 16000),
    ("old.voc", "VOC", "PCM_16", 8000),
    ("corpus.sph", "NIST", "PCM_16", 16000),
    ("dialogic.vox", "RAW", "VOX_ADPCM", 8000),
]
# name, container, codec, rate, bit rate: what FFmpeg writes (its wheel has no AMR-WB encoder)
FFMPEG = [
    ("phone.m4a", "ipod", "aac", 16000, 0),
    ("stream.aac", "adts", "aac", 16000, 0),
    ("meet.webm", "webm", "libopus", 48000, 0),
    ("narrow.amr", "amr", "libopencore_amrnb", 8000, 12200),
    ("phone.3gp", "3gp", "libopencore_amrnb", 8000, 12200),
    ("win.wma", "asf", "wmav2", 16000, 32000),
    ("g722.wav", "wav", "g722", 16000, 0),
    ("wide.g722", "g722", "g722", 16000, 0),
    ("g726.wav", "wav", "g726", 8000, 32000),
    ("g723.wav", "wav", "g723_1", 8000, 6300),
    ("mp3in.wav", "wav", "libmp3lame", 16000, 0),
    ("noxing.mp3", "mp3", "libmp3lame", 16000, 0),
]
UNDETECTABLE = {
    "dialogic.vox",
    "old.voc",
    "corpus.sph",
    "wide.g722",
    "noxing.mp3",
    "mp3in.wav",
}  # a half is as good as a whole
MP4_INDEX_LAST = {"phone.m4a", "phone.3gp"}


def speechlike(rate_hz: int, seconds: float = SECONDS, channels: int = 1) -> np.ndarray:
    """Float32 (n, channels): a wavering tone per channel over faint noise."""
    rng = np.random.default_rng(7)
    t = np.arange(round(rate_hz * seconds)) / rate_hz
    tones = [0.3 * np.sin(2 * np.pi * (300 + 200 * c) * t) * (0.6 + 0.4 * np.sin(5 * t)) for c in range(channels)]
    return (np.stack(tones, 1) + 0.003 * rng.standard_normal((len(t), channels))).astype(np.float32)


def write_sndfile(path: Path, samples: np.ndarray, container: str, subtype: str, rate_hz: int) -> Path:
    with sf.SoundFile(path, "w", rate_hz, samples.shape[1], subtype, format=container) as file:
        for start in range(0, len(samples), rate_hz):  # one huge write of Vorbis or Opus crashes libsndfile
            file.write(samples[start : start + rate_hz])
    return path


def write_ffmpeg(path: Path, samples: np.ndarray, container: str, codec: str, rate_hz: int, bit_rate: int) -> Path:
    options = {"write_xing": "0"} if path.name == "noxing.mp3" else {}
    with av.open(str(path), "w", format=container, options=options) as out:
        stream = out.add_stream(codec, rate=rate_hz, layout="mono")
        if bit_rate:
            stream.bit_rate = bit_rate
        stream.codec_context.open()
        size = stream.codec_context.frame_size or 1024
        shaper = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate_hz, frame_size=size)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), "fltp", layout="mono")
        frame.sample_rate, frame.pts = rate_hz, 0
        for shaped in [*shaper.resample(frame), *shaper.resample(None)]:
            out.mux(stream.encode(shaped))
        out.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One recording of SECONDS in every format, under the names above."""
    folder = tmp_path_factory.mktemp("formats")
    for name, container, subtype, rate_hz in SNDFILE:
        write_sndfile(folder / name, speechlike(rate_hz), container, subtype, rate_hz)
    for name, container, codec, rate_hz, bit_rate in FFMPEG:
        write_ffmpeg(folder / name, speechlike(rate_hz), container, codec, rate_hz, bit_rate)
    return folder


def recording(path: Path | str, **known: object) -> Recording:
    return Recording(0, "call", str(path), **known)  # type: ignore[arg-type]


def read(path: Path | str, to_hz: int = 8000, block_s: float = 30.0, limits: LimitSettings = LIMITS, **known: object):
    """(samples (channels, n), truncated) of a whole recording; checks what every block must satisfy."""
    with open_audio(recording(path, **known), to_hz, limits, block_s) as reader:
        blocks, position = [], 0
        for block in reader:
            assert block.start_samples == position
            assert block.samples.dtype == np.float32
            assert block.samples.shape[0] == reader.num_channels
            assert block.samples.shape[1] > 0
            position += block.samples.shape[1]
            blocks.append(block.samples)
        return np.concatenate(blocks, 1), reader.truncated


def wav(data: bytes, size: int | None = None, tag: int = 7, channels: int = 1, rate_hz: int = 8000, bits: int = 8):
    align = channels * bits // 8
    fmt = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * align, align, bits)
    head = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<I", 16) + fmt
    return head + b"data" + struct.pack("<I", len(data) if size is None else size) + data


PCM = (speechlike(8000, 2.0)[:, 0] * 32767).astype("<i2").tobytes()  # 16,000 samples

# ---- formats


@pytest.mark.parametrize("name", [row[0] for row in SNDFILE + FFMPEG])
def test_every_format_gives_its_signal(folder: Path, name: str) -> None:
    samples, truncated = read(folder / name)
    info = probe(recording(folder / name), LIMITS)
    assert not truncated
    assert info.num_channels == 1
    assert samples.shape[1] == pytest.approx(SECONDS * 8000, abs=1700)  # encoders pad
    assert info.duration_s == pytest.approx(SECONDS, abs=0.25)
    spectrum = np.abs(np.fft.rfft(samples[0, 4000:20000]))
    assert np.argmax(spectrum) / 2 == pytest.approx(300, abs=2)
    assert 0.1 < np.abs(samples).max() < 0.9


def test_every_suffix_written_here_is_known(folder: Path) -> None:
    assert {path.suffix for path in folder.iterdir()} <= AUDIO_SUFFIXES


def test_amr_wb_without_speech_frames_is_silence(tmp_path: Path) -> None:
    (tmp_path / "a.amr").write_bytes(b"#!AMR-WB\n" + b"\x7c" * 50)  # 50 frames of "no data", 20 ms each
    samples, _ = read(tmp_path / "a.amr", 16000)
    assert samples.shape == (1, 16000)


@pytest.mark.parametrize(("encoding", "subtype"), [("mulaw", "ULAW"), ("alaw", "ALAW"), ("pcm16", "PCM_16")])
@pytest.mark.parametrize("rate_hz", [None, 16000])
def test_headerless_audio_is_read_as_stated(tmp_path: Path, encoding: str, subtype: str, rate_hz: int | None) -> None:
    path = write_sndfile(tmp_path / "call.raw", speechlike(8000, 1), "RAW", subtype, 8000)
    samples, truncated = read(path, rate_hz or 8000, encoding=encoding, rate_hz=rate_hz)
    assert not truncated
    np.testing.assert_allclose(samples[0], speechlike(8000, 1)[:, 0], atol=0.02)
    assert probe(recording(path, encoding=encoding, rate_hz=rate_hz), LIMITS).rate_hz == (rate_hz or 8000)


def test_a_header_wins_over_a_stated_encoding(folder: Path) -> None:
    np.testing.assert_array_equal(read(folder / "alaw.wav")[0], read(folder / "alaw.wav", encoding="mulaw")[0])


@pytest.mark.parametrize("name", ["free.flac", "music.mp3", "phone.m4a", "mulaw.wav", "stream.aac"])
def test_content_decides_not_the_suffix(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "call.vox").write_bytes((folder / name).read_bytes())
    np.testing.assert_array_equal(read(tmp_path / "call.vox")[0], read(folder / name)[0])


@pytest.mark.parametrize("name", ["music.mp3", "noxing.mp3", "free.flac", "stream.aac"])
def test_an_id3_tag_is_passed_over(folder: Path, tmp_path: Path, name: str) -> None:
    tag = b"ID3\x04\0\0" + bytes([0, 0, 2, 0]) + b"\0" * 256
    (tmp_path / name).write_bytes(tag + (folder / name).read_bytes())
    tagged, truncated = read(tmp_path / name)
    assert not truncated
    np.testing.assert_allclose(tagged, read(folder / name)[0], atol=1e-6)


def test_mp3_without_xing_is_read_past_the_length_guessed_from_its_first_frame(tmp_path: Path) -> None:
    samples = np.concatenate([speechlike(16000, 1) * 3, np.zeros((16000 * 5, 1), np.float32)])
    with av.open(str(tmp_path / "a.mp3"), "w", options={"write_xing": "0"}) as out:
        stream = out.add_stream("libmp3lame", rate=16000, layout="mono", options={"flags": "+qscale"})
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), "fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        stream.codec_context.open()
        shaper = av.AudioResampler(stream.format.name, "mono", 16000, stream.codec_context.frame_size)
        for shaped in [*shaper.resample(frame), *shaper.resample(None)]:
            out.mux(stream.encode(shaped))
        out.mux(stream.encode(None))
    assert read(tmp_path / "a.mp3")[0].shape[1] >= 6 * 8000


# ---- blocks and rates


@pytest.mark.parametrize("name", ["mulaw.wav", "music.mp3", "voice.opus", "phone.m4a", "gsm.wav", "meet.webm"])
@settings(max_examples=8, deadline=None)
@given(block_s=st.floats(0.003, 4.0), rate_hz=st.sampled_from([8000, 16000, 11025]))
@example(block_s=1 / 3, rate_hz=8000)  # the last block would have a few samples
def test_blocks_join_to_the_whole_file_decoded_then_resampled(
    folder: Path, name: str, block_s: float, rate_hz: int
) -> None:
    native_hz = probe(recording(folder / name), LIMITS).rate_hz
    whole, _ = read(folder / name, native_hz, 1000.0)
    expected = soxr.resample(whole[0], native_hz, rate_hz, quality="HQ")
    streamed, _ = read(folder / name, rate_hz, block_s)
    assert streamed.shape[1] == len(expected)
    np.testing.assert_allclose(streamed[0], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["free.flac", "vorbis.ogg", "pcm24.wav"])
def test_samples_are_those_of_the_library(folder: Path, name: str) -> None:
    expected, rate_hz = sf.read(folder / name, dtype="float32")
    np.testing.assert_array_equal(read(folder / name, rate_hz, 0.7)[0][0], expected)


@pytest.mark.parametrize("channels", [2, 3, 8])
@pytest.mark.parametrize(("name", "container", "subtype"), [("a.wav", "WAV", "ULAW"), ("a.flac", "FLAC", "PCM_16")])
def test_a_channel_equals_the_same_mono(tmp_path: Path, channels: int, name: str, container: str, subtype: str) -> None:
    source = speechlike(16000, 1, channels)
    many, _ = read(write_sndfile(tmp_path / name, source, container, subtype, 16000), 8000, 0.3)
    assert many.shape == (channels, 8000)
    mono, _ = read(write_sndfile(tmp_path / ("m" + name), source[:, -1:], container, subtype, 16000), 8000)
    np.testing.assert_allclose(many[-1], mono[0], atol=1e-6)


def test_stereo_packed_and_planar_from_ffmpeg(tmp_path: Path) -> None:
    source = speechlike(16000, 1, 2)
    path = write_sndfile(tmp_path / "a.w64", source, "W64", "PCM_16", 16000)
    np.testing.assert_allclose(read(path, 16000)[0], source.T, atol=1e-4)
    path = write_sndfile(tmp_path / "a.w64", source, "W64", "PCM_U8", 16000)
    np.testing.assert_allclose(read(path, 16000)[0], source.T, atol=1e-2)
    path = write_sndfile(tmp_path / "a.w64", source, "W64", "FLOAT", 16000)
    np.testing.assert_array_equal(read(path, 16000)[0], source.T)


@pytest.mark.parametrize("rate_hz", [4000, 7350, 22050, 96000, 192000])
def test_any_rate(tmp_path: Path, rate_hz: int) -> None:
    path = write_sndfile(tmp_path / "a.wav", speechlike(rate_hz, 0.5), "WAV", "PCM_16", rate_hz)
    assert read(path)[0].shape[1] == 4000


@pytest.mark.parametrize("rate_hz", [8000, 48000, 4000])
def test_a_recording_of_one_sample_is_read(tmp_path: Path, rate_hz: int) -> None:
    sf.write(tmp_path / "a.wav", np.array([0.5]), rate_hz, subtype="FLOAT")
    samples, truncated = read(tmp_path / "a.wav")
    assert 1 <= samples.shape[1] <= 2
    assert not truncated


# ---- damaged headers and files


@pytest.mark.parametrize(
    ("size", "truncated"),
    [(0, True), (100, True), (31_998, True), (10**6, True), (0xFFFFFFFF, False), (0x7FFFF000, False), (32_000, False)],
)
@pytest.mark.parametrize("name", ["a.wav", "a.bin"])
def test_all_samples_are_read_whatever_the_data_size_says(
    tmp_path: Path, name: str, size: int, truncated: bool
) -> None:
    # A hidden remainder under 8 bytes counts as padding: 31,998 hides one sample.
    (tmp_path / name).write_bytes(wav(PCM, size, tag=1, bits=16))
    samples, said = read(tmp_path / name, block_s=0.4)
    expected = np.frombuffer(PCM, "<i2").astype(np.float32) / 32768
    if size == 31_998:
        expected, truncated = expected[:-1], False
    np.testing.assert_array_equal(samples[0], expected)
    assert said == truncated == probe(recording(tmp_path / name), LIMITS).truncated


@pytest.mark.parametrize("name", ["gsm.wav", "ms.wav", "ima.wav", "g722.wav", "g726.wav", "mulaw.wav", "mp3in.wav"])
@pytest.mark.parametrize("size", [0, 500])
def test_hidden_samples_of_every_codec_are_read(folder: Path, tmp_path: Path, name: str, size: int) -> None:
    content = bytearray((folder / name).read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", size)
    (tmp_path / name).write_bytes(content)
    samples, truncated = read(tmp_path / name)
    whole = read(folder / name)[0]
    assert truncated
    assert samples.shape[1] >= whole.shape[1]
    np.testing.assert_allclose(samples[:, : whole.shape[1] - 1000], whole[:, :-1000], atol=1e-6)


@pytest.mark.parametrize(
    "behind",
    [b"LIST\x04\0\0\0INFO", b"abcd\x02\0\0\0xyLIST\xff\xff\0\0", b"TAG" + b"x" * 125, b"\0" * 512, b"\0"],
    ids=["list", "unknown-then-cut", "id3v1", "padding", "pad-byte"],
)
def test_chunks_behind_the_samples_are_no_lie(tmp_path: Path, behind: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(wav(PCM, tag=1, bits=16) + behind)
    samples, truncated = read(tmp_path / "a.wav")
    assert samples.shape[1] == 16000
    assert not truncated


def rf64(data: bytes, size: int, form: bytes = b"RF64") -> bytes:
    whole = wav(data, 0xFFFFFFFF, tag=1, bits=16)
    return form + b"\xff" * 4 + b"WAVEds64" + struct.pack("<IQQQI", 28, 72 + len(data), size, 0, 0) + whole[12:]


@pytest.mark.parametrize("form", [b"RF64", b"BW64"])
@pytest.mark.parametrize(
    ("size", "truncated"), [(32_000, False), (0, True), (400, True), (10**12, True), (2**64 - 1, False)]
)
def test_rf64_sizes(tmp_path: Path, form: bytes, size: int, truncated: bool) -> None:
    (tmp_path / "a.wav").write_bytes(rf64(PCM, size, form))
    samples, said = read(tmp_path / "a.wav")
    np.testing.assert_array_equal(samples[0], np.frombuffer(PCM, "<i2").astype(np.float32) / 32768)
    assert said == truncated


def test_more_than_4_gib_behind_a_wrapped_size_is_served_as_rf64(tmp_path: Path) -> None:
    head = wav(b"", 1000, tag=1, bits=16)
    path = tmp_path / "a.wav"
    with path.open("wb") as file:
        file.write(head)
        file.write(b"\x10" * 4096)
        file.truncate(2**32 + 5000)  # sparse: takes no disk
    with path.open("rb", buffering=0) as file:
        source = Source(file, 2**32 + 5000, ".wav")
        layout = wav_layout(source)
        assert layout is not None
        assert not layout.readable
        with sf.SoundFile(corrected_wav(source, layout)) as corrected:
            assert corrected.frames == layout.num_bytes // 2 > 2**31
    info = probe(recording(path), LimitSettings(max_duration_s=1e9))
    assert info.truncated


def test_corrected_wav_reads_like_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(PCM, 0, tag=1, bits=16))
    with path.open("rb", buffering=0) as file:
        source = Source(file, path.stat().st_size, ".wav")
        layout = wav_layout(source)
        assert isinstance(layout, WavLayout)
        served = corrected_wav(source, layout)
        assert served.read() == wav(PCM, tag=1, bits=16)
        assert served.seek(-10, os.SEEK_END) == 44 + len(PCM) - 10
        assert served.read(100) == PCM[-10:]
        assert FileView(source).seek(-99) == 0
        assert served.seek(2**62) == 2**62
        assert served.read(1) == b""
        served.seek(10)
        served.seek(2, os.SEEK_CUR)
        assert served.read(8) == b"fmt \x10\0\0\0"


@pytest.mark.parametrize("name", [row[0] for row in SNDFILE + FFMPEG])
def test_half_a_file_gives_its_half_and_says_so(folder: Path, tmp_path: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    # Vorbis pages hold a second: the half would end before the second one is whole.
    (tmp_path / name).write_bytes(content[: len(content) * (11 if name == "vorbis.ogg" else 10) // 20])
    if name in MP4_INDEX_LAST:
        with pytest.raises(AudioError, match=r"looks like mp4 but cannot be decoded .* cut off"):
            read(tmp_path / name)
        return
    samples, truncated = read(tmp_path / name)
    assert 0.3 * SECONDS < samples.shape[1] / 8000 < 0.62 * SECONDS
    whole = read(folder / name)[0]
    kept = samples.shape[1] - 2400
    assert np.abs(samples[0, :kept] - whole[0, :kept]).max() < 1e-5
    if name not in UNDETECTABLE:
        assert truncated


@pytest.mark.parametrize("name", ["free.flac", "music.mp3", "stream.aac", "vorbis.ogg", "narrow.amr"])
def test_damage_in_the_middle_keeps_what_came_before(folder: Path, tmp_path: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    middle = len(content) * 11 // 20
    content[middle : middle + 1500] = np.random.default_rng(3).bytes(1500)
    (tmp_path / name).write_bytes(content)
    samples, truncated = read(tmp_path / name, block_s=30.0)
    assert samples.shape[1] > 0.35 * SECONDS * 8000
    whole = read(folder / name)[0]
    np.testing.assert_allclose(samples[0, :7000], whole[0, :7000], atol=1e-6)
    if name != "narrow.amr":  # its frames carry no check sum
        assert truncated


# ---- faults


def test_missing_folder_pipe_and_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AudioError, match="no such file; correct the path"):
        probe(recording(tmp_path / "none.wav"), LIMITS)
    with pytest.raises(AudioError, match="not a regular file"):
        probe(recording(tmp_path), LIMITS)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="not a regular file"):
        probe(recording(tmp_path / "pipe.wav"), LIMITS)
    with pytest.raises(AudioError, match="could not be read"):
        probe(recording("a\0b.wav"), LIMITS)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.wav").write_bytes(wav(PCM))
    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.raises(AudioError, match="not permitted"):
        probe(recording(tmp_path / "a.wav"), LIMITS)
    with pytest.raises(AudioError, match="not permitted"):
        source_sha256(recording(tmp_path / "a.wav"))


NO_SAMPLES = wav(b"")
FAULTY = {
    "empty": (b"", "empty \\(0 bytes\\)"),
    "random": (np.random.default_rng(0).bytes(4000), "no known audio header"),
    "text": ("Dear caller, grüß Gott\n".encode() * 50, "starts with text"),
    "one byte": (b"\0", "no known audio header"),
    "no samples": (NO_SAMPLES, "no audio \\(0 samples\\)"),
    "cut header": (NO_SAMPLES[:30], "looks like wav but cannot be decoded"),
    "unknown codec": (wav(PCM, tag=0x4242), "looks like wav but cannot be decoded|nothing in the wav file"),
    "nine channels": (wav(PCM[: 9 * 100], tag=7, channels=9), "has 9 channels, expected 1 to 8"),
    "1 Hz": (wav(PCM, rate_hz=1), "rate of 1 Hz, expected 4000 to 192000 Hz"),
    "1 MHz": (wav(PCM, rate_hz=10**6), "rate of 1000000 Hz"),
    "amr without frames": (b"#!AMR\n", "amr"),
    "mp4 of nothing": (b"\0\0\0\x08ftyp", "mp4"),
    "bare id3": (b"ID3\x04\0\0\0\0\0\0", "mp3"),
    "flac of nothing": (b"fLaC", "flac"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_faults_are_told_in_one_sentence(tmp_path: Path, fault: str) -> None:
    content, message = FAULTY[fault]
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(AudioError, match=message) as caught:
        read(tmp_path / "a.wav")
    assert "\n" not in str(caught.value)
    assert "caller" not in str(caught.value)  # never the file's content
    with pytest.raises(AudioError):
        probe(recording(tmp_path / "a.wav"), LIMITS)


def test_video_without_sound_is_told(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        out.mux(stream.encode(None))
    with pytest.raises(AudioError, match="no audio stream"):
        probe(recording(tmp_path / "a.mp4"), LIMITS)


def test_length_is_limited_by_header_and_while_decoding(folder: Path) -> None:
    short = LimitSettings(max_duration_s=2.0)
    with pytest.raises(AudioError, match="lasts 3 s or more, expected at most 2 s"):
        probe(recording(folder / "mulaw.wav"), short)
    probe(recording(folder / "stream.aac"), short)  # its length is only a guess
    with pytest.raises(AudioError, match="max_duration_s"):
        read(folder / "stream.aac", limits=short)
    small = LimitSettings(max_decoded_bytes=10_000)
    with pytest.raises(AudioError, match="decodes to 96000 bytes or more, expected at most 10000"):
        probe(recording(folder / "mulaw.wav"), small)
    with pytest.raises(AudioError, match="max_decoded_bytes"):
        read(folder / "stream.aac", limits=small)


@pytest.mark.parametrize("block_s", [0.1, 30.0])
def test_samples_that_are_not_finite_are_counted(tmp_path: Path, block_s: float) -> None:
    samples = speechlike(8000, 1, 2)
    samples[100, 0], samples[4000, 1], samples[7000] = np.nan, np.inf, -3e38
    sf.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"^4 of the file's 16000 samples are not finite"):
        read(tmp_path / "a.wav", block_s=block_s)


def test_doubles_past_float32_are_counted_too(tmp_path: Path) -> None:
    for name, container in (("a.wav", "WAV"), ("a.w64", "W64")):
        sf.write(tmp_path / name, np.array([0.0, 1e300, -1e300]), 8000, subtype="DOUBLE", format=container)
        with pytest.raises(AudioError, match="2 of the file's 3 samples"):
            read(tmp_path / name)


# ---- fake stereo


@pytest.mark.parametrize(
    ("name", "container", "subtype"),
    [
        ("a.wav", "WAV", "ULAW"),
        ("a.mp3", "MP3", "MPEG_LAYER_III"),
        ("a.ogg", "OGG", "VORBIS"),
        ("a.opus", "OGG", "OPUS"),
    ],
)
def test_two_channels_of_one_signal(tmp_path: Path, name: str, container: str, subtype: str) -> None:
    mono = speechlike(16000, 3)
    path = write_sndfile(tmp_path / name, np.repeat(mono, 2, axis=1), container, subtype, 16000)
    assert channels_carry_same_signal(recording(path), LIMITS)
    path = write_sndfile(tmp_path / name, speechlike(16000, 3, 2), container, subtype, 16000)
    assert not channels_carry_same_signal(recording(path), LIMITS)


def test_same_signal_within_codec_noise_and_silence(tmp_path: Path) -> None:
    mono = speechlike(8000, 4)[:, 0]
    noise = np.random.default_rng(0).standard_normal(len(mono)).astype(np.float32)

    def same(left: np.ndarray, right: np.ndarray) -> bool:
        sf.write(tmp_path / "a.wav", np.stack([left, right], 1), 8000, subtype="FLOAT")
        return channels_carry_same_signal(recording(tmp_path / "a.wav"), LIMITS)

    assert same(mono, mono + 0.002 * noise)  # −36 dB or so
    assert not same(mono, mono + 0.03 * noise)
    assert same(0 * mono, 0 * mono)
    assert not same(mono, 0 * mono)
    assert not same(mono, -mono)
    late = mono * (np.arange(len(mono)) > 3 * 8000)  # silent on both sides, then one side speaks
    assert not same(late, 0 * mono)
    assert same(late, late)


def test_only_two_channels_are_compared(folder: Path, tmp_path: Path) -> None:
    assert not channels_carry_same_signal(recording(folder / "mulaw.wav"), LIMITS)
    sf.write(tmp_path / "a.wav", np.zeros((800, 3)), 8000)
    assert not channels_carry_same_signal(recording(tmp_path / "a.wav"), LIMITS)


# ---- bytes and places


def source_sha256(recorded: Recording) -> str:
    with open_source(recorded, LIMITS.trust) as source:
        return source.sha256()


def test_sha256_is_that_of_the_bytes(folder: Path) -> None:
    expected = hashlib.sha256((folder / "music.mp3").read_bytes()).hexdigest()
    assert source_sha256(recording(folder / "music.mp3")) == expected
    assert source_sha256(recording((folder / "music.mp3").as_uri())) == expected
    with pytest.raises(AudioError, match="no such file"):
        source_sha256(recording(folder / "none"))


def test_urls_are_read_like_files(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("mulaw.wav", "phone.m4a", "dialogic.vox", "free.flac"):
        memory.pipe(f"/night/{name}", (folder / name).read_bytes())
        url = f"memory://night/{name}"
        np.testing.assert_array_equal(read(url)[0], read(folder / name)[0])
        np.testing.assert_array_equal(read((folder / name).as_uri())[0], read(folder / name)[0])
        assert source_sha256(recording(url)) == source_sha256(recording(folder / name))
    for url, message in (("memory://night/none.wav", "no such file"), ("nowhere://a.wav", "could not be read")):
        with pytest.raises(AudioError, match=message):
            probe(recording(url), LIMITS)


def test_a_length_below_zero_is_no_length(folder: Path, tmp_path: Path) -> None:
    """As ten thousand damaged files had it once: a WMA whose preroll is longer than its play duration."""
    data = bytearray((folder / "win.wma").read_bytes())
    start = data.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))  # ASF 3.2: duration at 64, preroll at 80
    data[start + 64 : start + 72] = struct.pack("<Q", 1)
    data[start + 80 : start + 88] = struct.pack("<Q", 7180)
    (tmp_path / "a.wma").write_bytes(data)
    info = probe(recording(tmp_path / "a.wma"), LIMITS)
    assert info.duration_s is None or info.duration_s > 0
    assert len(read(tmp_path / "a.wma")[0]) > 0


def test_a_header_far_away_is_read_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hour.wav"
    sf.write(path, np.zeros(8000 * 600, np.float32), 8000, subtype="PCM_16")
    memory = fsspec.filesystem("memory")
    memory.pipe("/night/hour.wav", path.read_bytes())
    read_bytes = 0

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal read_bytes
            found = super().read(size)
            read_bytes += len(found)
            return found

    monkeypatch.setattr(type(memory), "open", lambda self, path, *_, **__: Counted(self.cat_file(path)))
    info = probe(recording("memory://night/hour.wav"), LIMITS)
    assert (info.duration_s, info.truncated) == (600.0, False)
    assert 0 < read_bytes < 100_000


@pytest.mark.parametrize("failures", [2, 3])
def test_a_store_has_its_bad_minutes(folder: Path, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/night/mulaw.wav", (folder / "mulaw.wav").read_bytes())
    plain, tries = type(memory).open, []

    def failing(self: object, path: str, *rest: object, **more: object) -> object:
        tries.append(path)
        if len(tries) <= failures:
            raise OSError("503 Slow Down")
        return plain(self, path, *rest, **more)

    monkeypatch.setattr(type(memory), "open", failing)
    monkeypatch.setattr("batchser.audio.source.time.sleep", lambda _: None)
    if failures == 2:
        with open_source(recording("memory://night/mulaw.wav"), LIMITS.trust) as source:
            assert source.read_at(0, 4) == b"RIFF"
    else:
        with pytest.raises(AudioError, match=r"could not be read \(503 Slow Down\)"):
            open_source(recording("memory://night/mulaw.wav"), LIMITS.trust)


# ---------------------------------------------------------------------------------------------------- trust


@pytest.mark.parametrize(
    "path",
    [
        "http://169.254.169.254/latest/meta-data", "simplecache::http://x/a.wav", "zip://a.wav::s3://b/x.zip",
        "ftp://x/a.wav", "github://a:b@main/a.wav", "reference::s3://b/x", "HTTP://x/a.wav", "file::http://x/a.wav",
    ],
)  # fmt: skip
def test_protocols_that_are_not_allowed_are_not_spoken(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *_: pytest.fail("asked"))
    with pytest.raises(AudioError, match=r"the path has the protocol '\w+', expected a local path or one of s3, .*"):
        probe(recording(path), LimitSettings())


def test_recordings_outside_of_the_root_are_not_opened(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "day").mkdir(parents=True)
    inside = root / "day/a.wav"
    shutil.copy(folder / "mulaw.wav", inside)
    secret = tmp_path / "secret.wav"
    shutil.copy(folder / "mulaw.wav", secret)
    (root / "link.wav").symlink_to(inside)
    (root / "out.wav").symlink_to(secret)
    (root / "up").symlink_to(tmp_path)
    (tmp_path / "root-2").mkdir()
    shutil.copy(folder / "mulaw.wav", tmp_path / "root-2/a.wav")
    limits = LimitSettings(trust=TrustSettings(root=str(root)))
    for path in (inside, root / "link.wav", root / "day/../day/a.wav", inside.as_uri()):
        assert probe(recording(path), limits).codec == "ulaw"
    outside = (
        *(secret, root / "out.wav", root / "up/secret.wav", root / "../secret.wav", tmp_path / "root-2/a.wav"),
        *(secret.as_uri(), root / "nowhere/../../secret.wav", "s3://bucket/a.wav", "/proc/self/environ"),
    )
    for path in outside:
        with pytest.raises(AudioError, match="the path leads outside of --root"):
            probe(recording(path), limits)


def test_a_link_that_is_turned_while_it_is_opened_leads_nowhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    shutil.copy(folder / "mulaw.wav", tmp_path / "secret.wav")
    (tmp_path / "root/a.wav").symlink_to(tmp_path / "secret.wav")
    monkeypatch.setattr("batchser.audio.source.check_trusted", lambda *_: None)  # it still led inside when looked at
    with pytest.raises(AudioError, match="the path leads outside of --root"):
        open_source(recording(tmp_path / "root/a.wav"), TrustSettings(root=str(tmp_path / "root")))


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("s3://bucket/calls/a.wav", True), ("s3://bucket/calls/2026/a.wav", True), ("s3://bucket/calls-2/a.wav", False),
        ("s3://bucket/calls/../b/a.wav", False), ("s3://bucket/calls/%2e%2e/a.wav", False), ("/etc/a.wav", False),
        ("s3://other/calls/a.wav", False), ("s3a://bucket/calls/a.wav", False),
    ],
)  # fmt: skip
def test_a_root_may_be_a_prefix(path: str, inside: bool) -> None:
    trust = TrustSettings(root="s3://bucket/calls/")
    if inside:
        check_trusted(path, trust)
    else:
        with pytest.raises(AudioError, match="the path leads outside of --root"):
            check_trusted(path, trust)


def test_files_are_closed(folder: Path) -> None:
    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = num_open()
    for name in ("mulaw.wav", "phone.m4a"):
        probe(recording(folder / name), LIMITS)
        with open_audio(recording(folder / name), 8000, LIMITS, 0.1) as reader:
            next(iter(reader))
        for limits in (LimitSettings(max_duration_s=0.1), LimitSettings(max_channels=0)):
            with pytest.raises(AudioError):
                open_audio(recording(folder / name), 8000, limits)
    assert num_open() == before


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names need Linux")
def test_a_name_that_is_not_utf8(folder: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    (tmp_path / name).write_bytes((folder / "mulaw.wav").read_bytes())
    assert read(tmp_path / name)[0].shape[1] == SECONDS * 8000


def test_an_hour_costs_no_more_memory_than_its_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(bytes(range(256)) * (3600 * 8000 // 256)))
    tracemalloc.start()
    with open_audio(recording(path), 8000, LIMITS) as reader:
        num_samples = sum(block.samples.shape[1] for block in reader)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_samples == 3600 * 8000
    assert peak < 10e6  # the hour is 115 MB of float32


def test_eight_channels_at_192_khz_stay_in_bounded_blocks(tmp_path: Path) -> None:
    path = write_sndfile(tmp_path / "a.wav", np.zeros((192_000 * 4, 8), np.float32), "WAV", "PCM_U8", 192_000)
    with open_audio(recording(path), 192_000, LIMITS, 60.0) as reader:
        assert max(block.samples.nbytes for block in reader) <= 2**24


# ---- whatever comes


def survives(path: Path, content: bytes, **known: object) -> None:
    path.write_bytes(content)
    message, samples = "", np.zeros(0)
    try:
        samples, _ = read(path, block_s=0.5, **known)
    except AudioError as error:
        message = str(error)
    assert bool(message) != bool(samples.size)
    assert "\n" not in message
    assert np.isfinite(samples).all()


MAGICS = [
    b"",
    b"RIFF\0\0\0\0WAVE",
    b"OggS",
    b"fLaC",
    b"ID3",
    b"\xff\xfb",
    b".snd",
    b"#!AMR\n",
    b"\x1a\x45\xdf\xa3",
    b"caff",
]
MAGICS += [b"FORM\0\0\0\0AIFF", b"\0\0\0\x10ftypM4A ", b"NIST_1A\n", b"Creative Voice File\x1a"]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    magic=st.sampled_from(MAGICS),
    content=st.binary(max_size=3000),
    suffix=st.sampled_from([".wav", ".mp3", ".vox", ".g722", ".m4a", ""]),
    encoding=st.sampled_from([None, None, "mulaw", "pcm16"]),
)
def test_random_bytes_give_blocks_or_an_audio_error(
    tmp_path: Path, magic: bytes, content: bytes, suffix: str, encoding: str | None
) -> None:
    survives(tmp_path / f"a{suffix}", magic + content, encoding=encoding)


MUTATED = [
    "mulaw.wav",
    "ms.wav",
    "gsm.wav",
    "ima.wav",
    "float.wav",
    "long.rf64",
    "sun.au",
    "mac.aiff",
    "mac.caf",
    "g722.wav",
]
MUTATED += [
    "free.flac",
    "voice.opus",
    "vorbis.ogg",
    "music.mp3",
    "phone.m4a",
    "meet.webm",
    "narrow.amr",
    "win.wma",
    "old.voc",
]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(MUTATED),
    changes=st.lists(st.tuples(st.integers(4, 400), st.integers(0, 255)), min_size=1, max_size=6),
    keep=st.integers(20, 12_000),
)
def test_mutated_headers_give_blocks_or_an_audio_error(
    folder: Path, tmp_path: Path, name: str, changes: list[tuple[int, int]], keep: int
) -> None:
    content = bytearray((folder / name).read_bytes()[:keep])
    for position, value in changes:
        if position < len(content):
            content[position] = value
    survives(tmp_path / name, bytes(content))
