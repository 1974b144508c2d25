"""A lock that dies with its holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self

from batchser.errors import ConfigError


class FolderLock:
    """Sole use of a folder, made where it is missing, until ``release``, the end of a ``with`` or of the process.

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

    def check(self) -> None:
        """See that the folder is still held: nothing can take it away."""

    def release(self) -> None:
        """Give the folder back; a second time does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
