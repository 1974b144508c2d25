"""Where a header and the size of its file disagree, and a header that agrees.

Recorders that crash, stream or overflow leave wrong sizes: libsndfile reads nothing where ``data`` has size 0, and
every decoder stops at a ``data`` size that is too small. So sizes are compared with the file, and a WAV whose header
hides samples is decoded through a corrected header.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any, Final

from batchser.audio.source import Source

_MAX_CHUNKS: Final = 1000
_MAX_FMT_BYTES: Final = 4096
#: ``data`` sizes that mean "until the end of the file": the RIFF habit, and SoX's.
_STREAMING: Final = frozenset({0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF_FFFFFFFF})
_TRAILERS: Final = (b"LIST", b"id3 ", b"ID3", b"TAG", b"APETAGEX", b"bext", b"iXML", b"cue ", b"JUNK", b"_PMX", b"fact")
_PADDING_BYTES: Final = 4096
_MAX_OGG_PAGE_BYTES: Final = 65_307
_ASF_FILE_PROPERTIES: Final = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEAD_BYTES: Final = 2**16


@dataclass(frozen=True, slots=True)
class WavLayout:
    """Where a WAV's samples lie: ``num_bytes`` from ``start`` on.

    ``codec_tag`` is the format tag. ``readable`` is False where decoders must be given a corrected header;
    ``truncated`` where the ``data`` size and the file disagree.
    """

    codec_tag: int
    fmt: bytes
    start: int
    num_bytes: int
    readable: bool
    truncated: bool


class FileView(io.RawIOBase):
    """A header of our own, then part of the original file: read through, so that nothing is copied.

    Seeking before the start is not an error: damaged files make FFmpeg try.
    """

    def __init__(self, source: Source, header: bytes = b"", start: int = 0, num_bytes: int | None = None) -> None:
        super().__init__()
        self._file = source.file
        self._start = start
        self._header = header
        self._size = len(header) + (source.size - start if num_bytes is None else num_bytes)
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position in bytes, from the start of the header."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position, as in any file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` with bytes from the position on; return how many."""
        wanted = max(0, min(len(buffer), self._size - self._position))
        if not wanted:
            return 0
        if self._position < len(self._header):
            part = self._header[self._position : self._position + wanted]
        else:
            self._file.seek(self._start + self._position - len(self._header))
            part = self._file.read(wanted)
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


def corrected_wav(source: Source, layout: WavLayout) -> FileView:
    """View a WAV with a header that agrees with its samples."""
    return FileView(source, _wav_header(layout.fmt, layout.num_bytes), layout.start, layout.num_bytes)


def _wav_header(fmt: bytes, num_bytes: int) -> bytes:
    fmt_chunk = b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"\0" * (len(fmt) % 2)
    size = 4 + len(fmt_chunk) + 8 + num_bytes
    if size < 2**32 - 64:
        return b"RIFF" + struct.pack("<I", size) + b"WAVE" + fmt_chunk + b"data" + struct.pack("<I", num_bytes)
    ds64 = b"ds64" + struct.pack("<IQQQI", 28, size + 36, num_bytes, 0, 0)  # EBU Tech 3306
    unknown = b"\xff\xff\xff\xff"
    return b"RF64" + unknown + b"WAVE" + ds64 + fmt_chunk + b"data" + unknown


def wav_layout(source: Source) -> WavLayout | None:
    """Find a little-endian WAV's samples; None where there is no ``fmt`` chunk before a ``data`` chunk."""
    form = source.read_at(0, 4)
    if form == b"RIFX":
        return None
    position, fmt, long_size = 12, b"", None
    for _ in range(_MAX_CHUNKS):
        head = source.read_at(position, 8)
        if len(head) < 8:
            return None
        name, size = head[:4], int.from_bytes(head[4:], "little")
        position += 8
        if name == b"data":
            break
        if name == b"ds64":
            long_size = int.from_bytes(source.read_at(position + 8, 8), "little")
        elif name == b"fmt ":
            fmt = source.read_at(position, min(size, _MAX_FMT_BYTES))
        position += size + size % 2
    else:
        return None
    if len(fmt) < 16:
        return None
    if size == 0xFFFFFFFF and long_size is not None:
        size = long_size
    num_bytes, agrees = _true_data_size(source, position, size)
    tag = int.from_bytes(fmt[24:26] if fmt[:2] == b"\xfe\xff" and len(fmt) >= 26 else fmt[:2], "little")
    # Decoders stop by themselves at the end of a RIFF file; hidden bytes, and forms they do not know, need our header.
    readable = num_bytes <= size if form == b"RIFF" else num_bytes == size and form == b"RF64"
    return WavLayout(tag, fmt, position, num_bytes, readable, not agrees)


def _true_data_size(source: Source, start: int, declared: int) -> tuple[int, bool]:
    """How many bytes of samples there are from ``start`` on, and whether the declared size agrees."""
    available = max(0, source.size - start)
    if declared in _STREAMING:
        return available, True
    if declared > available:
        return available, False
    end = start + declared
    # Some writers forget the pad byte behind a chunk of odd size.
    if _only_chunks(source, end + declared % 2) or (declared % 2 and _only_chunks(source, end)):
        return declared, True
    return available, False


def _only_chunks(source: Source, position: int) -> bool:
    """Whether nothing but RIFF chunks, tags or a little padding stands from ``position`` to the end of the file."""
    for _ in range(_MAX_CHUNKS):
        left = source.size - position
        if left < 8:
            return True
        head = source.read_at(position, 8)
        if head.startswith(_TRAILERS):
            return True
        if left <= _PADDING_BYTES and not any(source.read_at(position, left)):
            return True
        size = int.from_bytes(head[4:], "little")
        if not all(0x20 <= byte < 0x7F for byte in head[:4]) or size > left - 8:
            return False
        position += 8 + size + size % 2
    return False


def ends_early(source: Source, container: str) -> bool:
    """Whether a file other than a WAV is shorter than its header, or its last page, promises."""
    if container == "ogg":
        return not _ogg_ends(source)
    if container == "caf":
        return _caf_is_cut(source)
    if container == "wma":
        return _asf_is_cut(source)
    head = source.read_at(0, 24)
    if container == "w64" and len(head) == 24:
        return int.from_bytes(head[16:], "little") > source.size
    if container == "au" and len(head) == 24:
        start, size = struct.unpack(">II", head[4:12])
        return bool(size != 0xFFFFFFFF and start + size > source.size)
    if container == "aiff" and len(head) == 24:
        return int.from_bytes(head[4:8], "big") + 8 > source.size + 1
    return False


def _ogg_ends(source: Source) -> bool:
    """Whether the last Ogg page is whole and says that the stream ends there (RFC 3533, section 6)."""
    tail = source.read_at(max(0, source.size - _MAX_OGG_PAGE_BYTES), _MAX_OGG_PAGE_BYTES)
    start = tail.rfind(b"OggS")
    page = tail[start:]
    if start < 0 or len(page) < 27 or len(page) < 27 + page[26]:
        return False
    return bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def _caf_is_cut(source: Source) -> bool:
    """Whether a chunk of a CAF reaches past the end of the file (size −1: the last one, of unknown size)."""
    position = 8
    for _ in range(_MAX_CHUNKS):
        head = source.read_at(position, 12)
        if len(head) < 12:
            return False
        size = int.from_bytes(head[4:], "big", signed=True)
        if size < 0:
            return False
        position += 12 + size
        if position > source.size:
            return True
    return False


def _asf_is_cut(source: Source) -> bool:
    """Whether the File Properties Object of an ASF (section 3.2: GUID, size, file id, file size) promises more."""
    head = source.read_at(0, _ASF_HEAD_BYTES)
    start = head.find(_ASF_FILE_PROPERTIES)
    return start >= 0 and int.from_bytes(head[start + 40 : start + 48], "little") > source.size
