"""A recording's bytes: a local file, or a temporary copy of what an fsspec URL holds."""

from __future__ import annotations

import hashlib
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final
from urllib.parse import urlsplit

from batchser.errors import AudioError
from batchser.records import Recording

_COPY_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class Source:
    """An open file of ``size`` bytes, and the suffix of its name in lower case, with its dot.

    Decoders share the one file, so they never see its name: a name cannot mislead them, nor make them open others.
    Several may read it, one after another; a remote recording is fetched once for all of them.
    """

    file: IO[bytes]
    size: int
    suffix: str

    def read_at(self, offset: int, num_bytes: int) -> bytes:
        """Up to ``num_bytes`` bytes from ``offset`` on; fewer only at the end of the file."""
        self.file.seek(offset)
        return self.file.read(num_bytes)

    def sha256(self) -> str:
        """The sha256 of its bytes, 64 hexadecimal digits.

        Raises
        ------
        AudioError : the file cannot be read
        """
        with _told_as_audio_error():
            self.file.seek(0)
            return hashlib.file_digest(self.file, "sha256").hexdigest()  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the file; a temporary copy vanishes with it."""
        self.file.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_source(recording: Recording) -> Source:
    """Open a recording's file for reading; a remote one is first copied to the temporary folder.

    Raises
    ------
    AudioError
        If there is no such file, it is not permitted, or not a regular file.
    """
    with _told_as_audio_error():
        file, suffix = _open_file(recording.path)
        try:
            size = file.seek(0, 2)
            file.seek(0)
        except BaseException:
            file.close()
            raise
    return Source(file, size, suffix)


def _open_file(path: str) -> tuple[IO[bytes], str]:
    if "://" not in path:
        return _open_local(path), Path(path).suffix.lower()
    import fsspec  # only remote recordings pay for it

    suffix = Path(urlsplit(path).path).suffix.lower()
    filesystem, inner = fsspec.core.url_to_fs(path)
    if "file" in ((filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol):
        return _open_local(inner), suffix
    # Without a buffer: decoders read by descriptor, and a buffer's position is not the descriptor's.
    copy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  the caller closes it
    try:
        with filesystem.open(inner, "rb") as remote:
            shutil.copyfileobj(remote, copy, _COPY_BYTES)
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return copy, suffix


def _open_local(path: str) -> IO[bytes]:
    # Ask before opening: opening a named pipe would wait forever.
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise AudioError("the path is not a regular file, expected a recording; name the file itself")
    return Path(path).open("rb", buffering=0)


@contextmanager
def _told_as_audio_error() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise AudioError("there is no such file; correct the path or fetch the recording again") from None
    except PermissionError:
        raise AudioError("reading the file is not permitted; give this user the right to read it") from None
    except (OSError, ValueError, ImportError, RuntimeError, EOFError) as error:
        # fsspec backends raise their own kinds, down to ImportError for a missing driver (s3fs, gcsfs, …).
        raise AudioError(f"the file could not be read ({_reason(error)}); check the path and its storage") from error


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
