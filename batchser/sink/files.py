"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from batchser.errors import BatchserError


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
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
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


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
