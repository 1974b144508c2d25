"""Which format a file has, by its first bytes; its suffix decides only where a format has no header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from batchser.audio.source import Source
from batchser.errors import AudioError, UnknownFormatError
from batchser.records import Recording

_HEAD_BYTES: Final = 2**16


@dataclass(frozen=True, slots=True)
class Format:
    """What to open a file with.

    ``name`` is the container, ``demuxer`` FFmpeg's name for it (None: FFmpeg has none), ``soundfile`` whether
    libsndfile is tried first; ``raw_subtype`` and ``raw_rate_hz`` are set for headerless audio.
    """

    name: str
    demuxer: str | None
    soundfile: bool = False
    raw_subtype: str | None = None
    raw_rate_hz: int = 0


# (offset, bytes, format). MP3 and W64 go to FFmpeg: libsndfile stops at a length that it guesses from the first frame
# of an MP3 without a Xing header, and its IMA ADPCM decoder, which W64 reaches, overflows (CVE-2026-37555).
_MAGICS: Final[tuple[tuple[int, bytes, Format], ...]] = (
    (8, b"WAVE", Format("wav", "wav", soundfile=True)),
    (0, b"fLaC", Format("flac", "flac", soundfile=True)),
    (0, b"OggS", Format("ogg", "ogg", soundfile=True)),
    (0, b".snd", Format("au", "au", soundfile=True)),
    (8, b"AIFF", Format("aiff", "aiff", soundfile=True)),
    (8, b"AIFC", Format("aiff", "aiff", soundfile=True)),
    (0, b"caff", Format("caf", "caf", soundfile=True)),
    (0, b"NIST_1A", Format("nist", "nistsphere", soundfile=True)),
    (0, b"Creative Voice File", Format("voc", "voc", soundfile=True)),
    (0, b"riff\x2e\x91\xcf\x11", Format("w64", "w64")),
    (0, b"\x1a\x45\xdf\xa3", Format("webm", "matroska")),
    (0, b"#!AMR", Format("amr", "amr")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Format("wma", "asf")),
    *((4, box, Format("mp4", "mp4")) for box in (b"ftyp", b"moov", b"mdat", b"styp", b"wide")),
)
_RIFF_FORMS: Final = (b"RIFF", b"RF64", b"BW64", b"RIFX")
_STATED_SUBTYPES: Final = {"mulaw": "ULAW", "alaw": "ALAW", "pcm16": "PCM_16"}
_STATED_RATE_HZ: Final = 8000


def format_of(source: Source, recording: Recording) -> Format:
    """Find a file's format: by its header, as the manifest states, by frames, by suffix, in this order.

    Raises
    ------
    AudioError
        If nothing fits; it tells text from unknown bytes.
    """
    tag_bytes = id3_bytes(source)
    head = source.read_at(tag_bytes, _HEAD_BYTES)
    if tag_bytes:  # libsndfile refuses such a tag before anything but MP3
        return Format("flac", "flac") if head[:4] == b"fLaC" else _by_frames(head, len(head)) or Format("mp3", "mp3")
    known = _by_magic(head)
    if known is not None:
        return known
    if recording.encoding is not None:
        rate_hz = recording.rate_hz or _STATED_RATE_HZ
        return Format("raw", None, True, _STATED_SUBTYPES[recording.encoding], rate_hz)
    if _is_text(head):
        raise AudioError("the file starts with text, expected audio; export the recording again")
    framed = _by_frames(head, source.size)
    if framed is not None:
        return framed
    if source.suffix == ".vox":  # Dialogic ADPCM: 8 kHz mono by convention
        return Format("vox", None, True, "VOX_ADPCM", _STATED_RATE_HZ)
    if source.suffix == ".g722":
        return Format("g722", "g722")
    raise UnknownFormatError(
        "the file starts with no known audio header, expected WAV, MP3, FLAC, Ogg, M4A, WebM, AMR or the like; export "
        "it again, or state `encoding` (mulaw, alaw, pcm16) and `rate_hz` in the manifest if it is headerless"
    )


def id3_bytes(source: Source) -> int:
    """The length of the ID3 tag at the start of a file, 0 without one (ID3v2.4, 3.1: four bytes of seven bits)."""
    head = source.read_at(0, 10)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def _by_magic(head: bytes) -> Format | None:
    for offset, magic, known in _MAGICS:
        if head[offset : offset + len(magic)] != magic:
            continue
        if magic == b"WAVE" and head[:4] not in _RIFF_FORMS:
            continue
        if magic in (b"AIFF", b"AIFC") and head[:4] != b"FORM":
            continue
        return known
    return None


def _is_text(head: bytes) -> bool:
    """Whether all of the first bytes are printable UTF-8, tabs and line ends."""
    text = head[:4096].decode("utf-8", errors="ignore")
    # A character cut at the end of the sample is ignored, so compare lengths with that slack.
    whole = len(text.encode()) >= min(len(head), 4096) - 3
    return bool(text) and whole and all(char.isprintable() or char in "\t\r\n\f\ufeff" for char in text)


def _by_frames(head: bytes, size: int) -> Format | None:
    """MP3 or AAC without a leading tag: three frame headers in a row, or fewer that end with the file.

    A two-byte sync mark alone occurs in every 2,000 random bytes, and junk before the first frame is common.
    """
    start = head.find(b"\xff")
    while start >= 0:
        position, num_frames, name = start, 0, None
        while num_frames < 3:
            frame = _frame(head[position : position + 7])
            if frame is None or (name is not None and frame[0] != name):
                break
            name, num_frames, position = frame[0], num_frames + 1, position + frame[1]
        if name is not None and (num_frames == 3 or position == size):
            return Format(name, name)
        start = head.find(b"\xff", start + 1)
    return None


_SHORT_KBPS: Final = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MPEG1_KBPS: Final = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
}
_MPEG_RATES_HZ: Final = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def _frame(header: bytes) -> tuple[str, int] | None:
    """The name (``mp3``, ``aac``) and length in bytes of the frame that starts here (ISO 11172-3 2.4.2.3, 13818-7)."""
    if len(header) < 7 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    if header[1] & 0xF6 == 0xF0:  # ADTS
        num_bytes = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
        return ("aac", num_bytes) if num_bytes > 7 and (header[2] >> 2) & 15 < 13 else None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    kbps_index, rate_index, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer not in (2, 3) or kbps_index in (0, 15) or rate_index == 3:
        return None
    kbps = _MPEG1_KBPS[layer][kbps_index] if version == 3 else _SHORT_KBPS[kbps_index]
    num_bytes_per = 144_000 if version == 3 or layer == 2 else 72_000
    return "mp3", num_bytes_per * kbps // _MPEG_RATES_HZ[version][rate_index] + padding
