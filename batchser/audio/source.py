"""A recording's bytes: a local file, or a temporary copy of what an fsspec URL holds."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final
from urllib.parse import unquote, urlsplit

from batchser.errors import AudioError
from batchser.records import Recording
from batchser.settings import TrustSettings

_COPY_BYTES: Final = 2**20
_MOST_BYTES: Final = 16 * 2**30  # of a remote recording: a day and a night in stereo, uncompressed
_PIECE_BYTES: Final = 2**16  # of a remote recording whose header is read: most headers are in the first piece
_PAUSES_S: Final = (0.5, 2.0)  # between tries to fetch a remote recording


@dataclass(frozen=True, slots=True)
class Source:
    """An open file of ``size`` bytes, and the suffix of its name in lower case, with its dot.

    ``on_disk``: it has a descriptor; else it lies elsewhere, and is fetched piece by piece as it is read.

    Decoders share the one file, so they never see its name: a name cannot mislead them, nor make them open others.
    Several may read it, one after another; a remote recording is fetched once for all of them.
    """

    file: IO[bytes]
    size: int
    suffix: str
    on_disk: bool = True

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


def open_source(recording: Recording, trust: TrustSettings | None = None, *, fetch: bool = True) -> Source:
    """Open a recording's file for reading.

    Parameters
    ----------
    recording
        Its path is a local file or an fsspec URL.
    trust
        Where recordings may lie; by default anywhere on this machine and in object stores.
    fetch
        Copy a remote recording to the temporary folder first; else it is read piece by piece where it is, which is
        quicker for a header.

    Raises
    ------
    AudioError
        If there is no such file, it is not permitted, not a regular file, or not where ``trust`` lets it be.
    """
    trust = trust or TrustSettings()
    with _told_as_audio_error():
        check_trusted(recording.path, trust)
        file, suffix, on_disk = _open_file(recording.path, trust, fetch=fetch)
        try:
            size = file.seek(0, 2)
            file.seek(0)
        except BaseException:
            file.close()
            raise
    return Source(file, size, suffix, on_disk)


def check_trusted(path: str, trust: TrustSettings) -> None:
    """See whether a recording may be opened at all; nothing is opened, asked or fetched for it.

    Raises
    ------
    AudioError
        If its protocol is not among those allowed, or it lies outside of the root.
    """
    schemes = schemes_of(path)
    strange = [scheme for scheme in schemes if scheme not in trust.protocols and scheme not in _LOCAL_SCHEMES]
    if strange:
        raise AudioError(
            f"the path has the protocol {strange[0]!r}, expected a local path or one of {', '.join(trust.protocols)}; "
            "allow others with --protocols"
        )
    if trust.root is None:
        return
    if set(schemes) <= _LOCAL_SCHEMES and "://" not in trust.root:
        _check_inside(os.path.realpath(_local_path(path)), trust.root)
    elif len(schemes) != 1 or not _lies_below(path, trust.root):
        raise AudioError(_OUTSIDE)


#: Names under which fsspec opens files of this machine.
_LOCAL_SCHEMES: Final = frozenset({"file", "local"})
_OUTSIDE: Final = "the path leads outside of --root, expected a recording below it; move it there, or correct the path"


def schemes_of(path: str) -> list[str]:
    """All protocols of an fsspec URL, from the outermost of a chain on; none of a plain path."""
    if "://" not in path:
        return []
    return [link.partition("://")[0].lower() for link in path.split("::")]


def _local_path(path: str) -> str:
    return re.sub(r"^(?:file|local)://", "", path, flags=re.IGNORECASE)


def _lies_below(path: str, root: str) -> bool:
    """Whether a URL names something below another, as it is written: ``..`` is not for URLs."""
    return path.startswith(root.rstrip("/") + "/") and ".." not in unquote(path).split("/")


def _check_inside(real: str, root: str) -> None:
    folder = os.path.realpath(root)
    if os.path.commonpath([real, folder]) != folder:
        raise AudioError(_OUTSIDE)


def _open_file(path: str, trust: TrustSettings, *, fetch: bool) -> tuple[IO[bytes], str, bool]:
    """A recording's open file, its suffix, and whether that is a file of this machine."""
    if set(schemes_of(path)) <= _LOCAL_SCHEMES:
        local = _local_path(path)
        return _open_local(local, trust), Path(local).suffix.lower(), True
    import fsspec  # only remote recordings pay for it

    suffix = Path(urlsplit(path).path).suffix.lower()
    filesystem, inner = fsspec.core.url_to_fs(path)
    if not fetch:
        return filesystem.open(inner, "rb", block_size=_PIECE_BYTES), suffix, False
    # Without a buffer: decoders read by descriptor, and a buffer's position is not the descriptor's.
    copy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  the caller closes it
    try:
        for pause_s in (*_PAUSES_S, None):
            try:
                _fetch(filesystem, inner, copy)
                break
            except (FileNotFoundError, PermissionError, AudioError):
                raise
            except Exception:  # a store has its bad minutes, and its driver kinds of its own for them
                if pause_s is None:
                    raise
                time.sleep(pause_s)
    except BaseException:
        copy.close()
        raise
    return copy, suffix, True


def _fetch(filesystem: Any, path: str, copy: IO[bytes]) -> None:
    copy.seek(0)
    copy.truncate()
    with filesystem.open(path, "rb") as remote:
        num_bytes = getattr(remote, "size", None) or 0
        if num_bytes > _MOST_BYTES:
            raise AudioError(f"the file has {num_bytes} bytes, expected a recording of at most {_MOST_BYTES}; split it")
        shutil.copyfileobj(remote, copy, _COPY_BYTES)
    copy.seek(0)


def _open_local(path: str, trust: TrustSettings) -> IO[bytes]:
    # Ask before opening: opening a named pipe would wait forever.
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise AudioError("the path is not a regular file, expected a recording; name the file itself")
    file = Path(path).open("rb", buffering=0)  # noqa: SIM115  the caller closes it
    opened = Path(f"/proc/self/fd/{file.fileno()}")
    if trust.root is not None and opened.exists():  # a link may have been turned since it was looked at
        try:
            _check_inside(os.path.realpath(opened), trust.root)
        except AudioError:
            file.close()
            raise
    return file


@contextmanager
def _told_as_audio_error() -> Iterator[None]:
    try:
        yield
    except AudioError:
        raise
    except FileNotFoundError:
        raise AudioError("there is no such file; correct the path or fetch the recording again") from None
    except PermissionError:
        raise AudioError("reading the file is not permitted; give this user the right to read it") from None
    except Exception as error:
        # fsspec backends raise their own kinds, down to ImportError for a missing driver (s3fs, gcsfs, …).
        raise AudioError(f"the file could not be read ({_reason(error)}); check the path and its storage") from error


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
