"""Things that are made once and kept: decoded clips and windows, each under a fingerprint of all that it depends on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from batchser.errors import BatchserError, ConfigError
from batchser.settings import fingerprint_of
from batchser.training.workers import Report

_PACKAGE: Final = Path(__file__).parents[1]
#: What decides how clips sound and what windows are, besides what they are made of.
_SOURCES: Final = (
    "audio/*.py", "features/*.py", "training/augment/*.py", "training/corpora/*.py", "training/compose.py",
    "training/examples.py",
)  # fmt: skip
_LIBRARIES: Final = ("numpy", "scipy", "librosa", "soxr", "soundfile", "av", "audiomentations", "praat-parselmouth")
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Store:
    """A folder with a folder ``NAME-KEY`` for everything kept. Several runs may share it: where two need the same, the
    second waits for the first.
    """

    folder: Path
    report: Report

    def make(self, name: str, key: Any, fill: Callable[[Path], None]) -> Path:
        """Return the folder that ``key``, and the code and libraries that make such things, stand for.

        Where it is not there, ``fill`` writes into an empty one, which is moved into place when it is done.

        Raises
        ------
        BatchserError : the disk is full
        """
        place = self.folder / f"{name}-{fingerprint_of([makers(), key])[:16]}"
        if not place.is_dir():
            with self._alone(place):
                if not place.is_dir():
                    self._make(place, fill)
                    return place
        self.report(f"{name}: taken from {place}")
        return place

    @contextlib.contextmanager
    def _alone(self, place: Path) -> Iterator[None]:
        """Keep other runs from making the same meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with place.with_name(f"{place.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however that ends
            except BlockingIOError:
                self.report(f"{place.name}: another run is making it; waiting")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make(self, place: Path, fill: Callable[[Path], None]) -> None:
        beside = place.with_name(f"{place.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            fill(beside)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            shutil.rmtree(beside, ignore_errors=True)
            raise BatchserError(
                f"{self.folder}: no room for {place.name} ({error.strerror}); make some, the same command goes on"
            ) from error
        beside.rename(place)


@functools.cache
def makers(sources: Sequence[str] = _SOURCES, libraries: Sequence[str] = _LIBRARIES) -> str:
    """Stand for the code and the libraries that make something, decoded clips and windows unless others are named: what
    is kept ends with them.
    """
    code = hashlib.sha256()
    for file in sorted(file for pattern in sources for file in _PACKAGE.glob(pattern)):
        code.update(file.read_bytes())
    versions = []
    for library in libraries:
        with contextlib.suppress(metadata.PackageNotFoundError):  # of an extra
            versions.append([library, metadata.version(library)])
    return fingerprint_of([code.hexdigest(), versions])


def allocate(file: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    """Make an array of zeros on disk, to be mapped into memory, and take its room: a full disk is an error here.

    Without room of its own a mapped file ends the process that writes to it.
    """
    np.lib.format.open_memmap(file, "w+", dtype, shape).flush()
    with file.open("r+b") as array:
        try:
            os.posix_fallocate(array.fileno(), 0, file.stat().st_size)
        except OSError as error:
            if error.errno in _FULL:
                raise  # else a file system that does not know how


def sounds_key(paths: Sequence[Path]) -> list[list[Any]]:
    """Stand for sounds by name and content, wherever they lie."""
    return [[path.name, _checksum(path, path.stat().st_mtime_ns)] for path in paths]


@functools.cache
def _checksum(path: Path, changed_ns: int) -> int:
    return zlib.crc32(path.read_bytes())


def check_cache(cache: Path, out: Path) -> None:
    """See before anything starts that a folder can keep things beyond a run that writes ``out``.

    Raises
    ------
    ConfigError : it cannot be made, or lies where the run cleans up at its end
    """
    for own in (out, out.with_name(f"{out.name}.work")):
        if cache.resolve().is_relative_to(own.resolve()):
            raise ConfigError(f"--cache {cache}: lies in {own}, which this run removes; give a folder of its own")
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--cache {cache}: cannot be made ({error.strerror})") from error
