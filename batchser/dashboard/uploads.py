"""Recordings that a visitor brings: scored at once in a process of its own, kept as long as the dashboard runs.

They are strangers' files: one that kills its decoder, or keeps it busy, costs the process and not the dashboard. What
has been scored there can be decoded here: pictures and sounds are made of it by the same decoders.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import re
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

import pandas as pd
import pyarrow as pa

from batchser import __version__, summary
from batchser.bundle import Bundle
from batchser.errors import AudioError, BatchserError
from batchser.listening import original
from batchser.pipeline import score_recordings
from batchser.processes import clear_alarm, memory_limit_bytes, obey_driver, set_alarm
from batchser.records import Outcome, Recording
from batchser.results.opening import as_frame, records
from batchser.scoring import Model, load_model
from batchser.settings import Headerless, LimitSettings, RunSettings
from batchser.tables import Provenance, calls_table, segments_table

#: What an upload may ask of the machine: it is for a look at one call, a night is for `batchser run`.
UPLOAD_LIMITS: Final = LimitSettings(max_duration_s=2 * 3600.0, max_channels=2, max_decoded_bytes=4 * 2**30)
_TIME_LIMIT_S: Final = 60.0
#: One is scored and one waits; others are told to come again, so that pages keep being answered.
_MOST_AT_ONCE: Final = 2
#: Earlier ones are forgotten: these are people's voices.
_MOST_UPLOADS: Final = 20
_NAME_CHARACTERS: Final = 200


class BusyError(BatchserError):
    """Others' recordings are being scored."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A recording that was scored: its rows of both tables, and the seconds that scoring took."""

    token: str
    path: Path
    calls: list[dict[str, Any]]
    windows: pd.DataFrame
    seconds: float


class Uploads:
    """Scores one recording at a time; the last ones stay in a temporary folder, which goes with ``close``."""

    def __init__(
        self, bundle: Bundle, settings: RunSettings, headerless: Headerless, time_limit_s: float = _TIME_LIMIT_S
    ) -> None:
        if bundle.folder is None:
            raise ValueError("the bundle is not on disk")
        self.bundle = bundle
        self._folder_of_model = bundle.folder
        self._settings = replace(settings, limits=UPLOAD_LIMITS)
        self._headerless = headerless
        self._time_limit_s = time_limit_s
        self._places = threading.BoundedSemaphore(_MOST_AT_ONCE)
        self._turn = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._pid: Future[int] | None = None
        self._books = threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._kept: OrderedDict[str, Upload] = OrderedDict()

    def warm(self) -> None:
        """Load the model in its process, so that the first recording need not wait for it."""
        with self._turn:
            self._process().submit(_load, self._folder_of_model, self.bundle.sha256)

    def get(self, token: str) -> Upload | None:
        """Return an upload that is still kept."""
        return self._kept.get(token)

    def add(self, file: IO[bytes], name: str, channel_roles: tuple[str, ...] | None) -> Upload:
        """Score a recording in any format. One that cannot be read has a row that says why, and no windows.

        Raises
        ------
        BusyError : too many are at it already
        """
        if not self._places.acquire(blocking=False):
            raise BusyError("Other recordings are being scored; choose yours again in a minute.")
        try:
            token = secrets.token_urlsafe(16)
            suffix = re.sub(r"[^A-Za-z0-9.]", "", Path(name).suffix)[:8]
            path = self._made() / f"{token}{suffix}"
            with path.open("wb") as copy:
                shutil.copyfileobj(file, copy, 2**20)
            shown = "".join(character for character in Path(name).name if character.isprintable())[:_NAME_CHARACTERS]
            settings = replace(self._settings, channel_roles=channel_roles or self._settings.channel_roles)
            with self._turn:
                started = time.perf_counter()
                calls, windows = self._scored(Recording(0, shown or "upload", str(path)), settings)
                seconds = time.perf_counter() - started
            upload = Upload(token, path, records(as_frame(calls)), as_frame(windows), seconds)
            self._keep(upload)
            return upload
        finally:
            self._places.release()

    def close(self) -> None:
        """Forget all, and end the process, whatever it is doing."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
            if self._pid is not None and self._pid.done() and not self._pid.exception():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid.result(), signal.SIGKILL)
        with self._books:
            self._kept.clear()
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    def _scored(self, recording: Recording, settings: RunSettings) -> tuple[pa.Table, pa.Table]:
        bundle = self.bundle
        try:
            work = (bundle.sha256, recording, settings, self._headerless, self._time_limit_s)
            return self._process().submit(_score, self._folder_of_model, *work).result()
        except BrokenProcessPool:
            self._pool = None  # the next one has a new process
            why = f"the process that scored it died, grew too large, or took longer than {self._time_limit_s:.0f} s"
            outcome = Outcome(recording, (summary.failed("crashed", why),))
            return _tables(outcome, bundle, settings)

    def _process(self) -> ProcessPoolExecutor:
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, spawn, obey_driver, (memory_limit_bytes(1),))
            self._pid = self._pool.submit(os.getpid)
        return self._pool

    def _made(self) -> Path:
        with self._books:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="batchser-uploads-")
            return Path(self._folder.name)

    def _keep(self, upload: Upload) -> None:
        with self._books:
            self._kept[upload.token] = upload
            while len(self._kept) > _MOST_UPLOADS:
                _, old = self._kept.popitem(last=False)
                old.path.unlink(missing_ok=True)


@functools.lru_cache(maxsize=1)
def _model(folder: Path, sha256: str) -> Model:
    return load_model(folder, sha256)


def _load(folder: Path, sha256: str) -> None:
    _model(folder, sha256)


def _score(
    folder: Path,
    sha256: str,
    recording: Recording,
    settings: RunSettings,
    headerless: Headerless,
    time_limit_s: float,
) -> tuple[pa.Table, pa.Table]:
    """Score a recording in the process of uploads, which ends where that takes too long."""
    model = _model(folder, sha256)
    set_alarm(time_limit_s)
    try:
        if headerless.encoding is not None:
            with contextlib.suppress(AudioError):  # its row will say
                known = original(recording.path, settings.limits, headerless)
                recording = replace(recording, encoding=known.encoding, rate_hz=known.rate_hz)
        (outcome,) = score_recordings([recording], model, settings)
    finally:
        clear_alarm()
    return _tables(outcome, model.bundle, settings)


def _tables(outcome: Outcome, bundle: Bundle, settings: RunSettings) -> tuple[pa.Table, pa.Table]:
    provenance = Provenance(bundle.name, bundle.sha256, settings.fingerprint(), __version__)
    return calls_table([outcome], bundle.labels, provenance), segments_table([outcome], bundle.labels)
