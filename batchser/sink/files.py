"""Files that appear whole or not at all, and a lock that dies with its holder."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from batchser.errors import BatchserError, ConfigError


class SinkError(BatchserError):
    """Results cannot be written: the disk is full or gone (exit code 3). The same command resumes."""


@contextlib.contextmanager
def placing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on leaving, its file is synced and moved to ``path``.

    Raises
    ------
    SinkError : the system refused to write, sync or move; nothing is left behind, ``path`` is as before
    """
    # Random, as two workers may write the same part at once; beside it, as a move is only atomic in one file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SinkError(
            f"{path}: cannot be written ({reason}); finished parts are kept: mend that and repeat the same command"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_temporaries(path: Path) -> None:
    """Remove what writers that were killed left beside ``path`` when they meant to place it."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            stale.unlink()


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FolderLock:
    """Sole use of a folder, which is made where it is missing, until ``release`` or the end of the process.

    The kernel gives a flock back when its process dies, however it dies: there is no stale lock to clear. (A child that
    is forked, not spawned, shares it.)

    Raises
    ------
    ConfigError : another process holds the folder, or it cannot be made
    """

    def __init__(self, folder: Path) -> None:
        self._handle = -1
        path = folder / "lock"
        try:
            while not self._take(path):
                pass  # the last holder removed the folder between our opening the file and locking it
        except BlockingIOError:
            raise ConfigError(f"{folder}: another run is at work on this output; wait for it or stop it") from None
        except OSError as error:
            raise ConfigError(f"{folder}: no work folder can be made here ({error.strerror or error})") from error

    def _take(self, path: Path) -> bool:
        """Lock the file; True if it is still the one of that name."""
        path.parent.mkdir(exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), path.stat()):
                self._handle, handle = handle, -1
                return True
        except FileNotFoundError:
            pass
        finally:
            if handle >= 0:
                os.close(handle)
        return False

    def release(self) -> None:
        """Give the folder back; a second time does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
