"""Preflight: what a run will meet, from headers alone. `batchser check` prints it; `batchser run` plans by it."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Final

from batchser import audio
from batchser.bundle import Bundle, find_bundle
from batchser.errors import AudioError, ConfigError
from batchser.manifest import UNKNOWN_SECONDS, read_inputs
from batchser.pipeline import channel_roles, score_recordings, scored_channels
from batchser.processes import clear_alarm, memory_limit_bytes, obey_driver, set_alarm
from batchser.records import AudioInfo, Recording
from batchser.scoring import Model, choose_engine, load_model
from batchser.settings import AUTO_ENGINE, LimitSettings, RunSettings, available_cores, default_workers
from batchser.tables import reserved_columns

_CHUNK: Final = 256
_STEREO_CHUNK: Final = 16
_THREADS: Final = 8  # in all: headers wait for disks and networks more than for processors
_CALIBRATION_S: Final = 600.0
_CALIBRATION_LIMIT_S: Final = 300.0  # and as long as the recordings last
_START_UP_S: Final = 5.0  # processes start and load the model, and end
_SIDE_BY_SIDE: Final = 0.85  # the speed of a process beside others, that share caches and memory, over one alone
_FAULTS_SHOWN: Final = 20
_HEADER_DIED: Final = "the process that read its header died, grew too large, or took too long"
#: Into so many pieces goes a chunk whose process died: one recording of it may have hung, for as long as it may.
_PIECES: Final = 16


@dataclass(frozen=True, slots=True)
class Header:
    """A recording and what its header says, or the fault that makes it ``unreadable``."""

    recording: Recording
    info: AudioInfo | None
    fault: str | None = None

    @property
    def duration_s(self) -> float | None:
        """Length by the header; None where only decoding tells, 0 where nothing can be read."""
        return self.info.duration_s if self.info else 0.0


def read_headers(
    recordings: Sequence[Recording], limits: LimitSettings, processes: int, time_limit_s: float = 120.0
) -> list[Header]:
    """Read the header of every recording, in order.

    This is done in so many ``processes`` of its own: a file that kills its decoder already here, makes it eat more
    memory than a worker may, or keeps it busy for longer than ``time_limit_s``, costs its own header, and its row is
    left to a worker's process. 0: in this one.
    """
    if not processes:
        return list(_headers(recordings, limits, _THREADS))
    headers: list[Header] = []
    waiting = deque(recordings[k : k + _CHUNK] for k in range(0, len(recordings), _CHUNK))
    processes = max(1, min(processes, len(waiting)))
    while waiting:
        with _pool(processes) as pool:
            threads = max(1, _THREADS // processes)
            running = deque(
                (chunk, pool.submit(_read_chunk, chunk, limits, threads, time_limit_s)) for chunk in waiting
            )
            waiting.clear()
            while running:
                chunk, future = running.popleft()
                try:
                    headers += future.result()
                except BrokenProcessPool:
                    size = -(-len(chunk) // _PIECES)
                    again = [chunk[k : k + size] for k in range(0, len(chunk), size)]
                    if processes > 1:  # whose process died is not told: from now on one chunk at a time
                        processes, again = 1, [chunk]
                    elif len(chunk) == 1:
                        headers.append(Header(chunk[0], None, _HEADER_DIED))
                        again = []
                    waiting.extend([*again, *(other for other, _ in running)])
                    break
    return headers


@contextmanager
def _pool(processes: int, sharing: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """Processes that are ended where the block is broken off: they do not hear Ctrl-C, and nobody waits for them.

    Each may weigh its share of the machine as one of so many, or as one of ``sharing``.
    """
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    limit = memory_limit_bytes(sharing or processes)
    with ProcessPoolExecutor(processes, spawn, obey_driver, (limit,)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
            raise


def _read_chunk(
    recordings: Sequence[Recording], limits: LimitSettings, threads: int, time_limit_s: float
) -> list[Header]:
    """Read some headers in a process of its own, which ends where one of them takes longer than it may."""
    headers: list[Header] = []
    try:
        set_alarm(time_limit_s)
        for header in _headers(recordings, limits, threads):
            headers.append(header)
            set_alarm(time_limit_s)
    finally:
        clear_alarm()
    return headers


def _headers(recordings: Sequence[Recording], limits: LimitSettings, threads: int) -> Iterator[Header]:
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda recording: _read_header(recording, limits), recordings)


def _read_header(recording: Recording, limits: LimitSettings) -> Header:
    try:
        return Header(recording, audio.probe(recording, limits))
    except AudioError as error:
        return Header(recording, None, str(error))
    except Exception as error:  # the worker that scores it will say more, and log it
        return Header(recording, None, f"unexpected {type(error).__name__} while its header was read")


def refuse_if_nothing_is_scored(
    headers: Sequence[Header], settings: RunSettings, processes: int = 0, time_limit_s: float = 120.0
) -> None:
    """Stop a run that would score no channel at all; ``processes`` and ``time_limit_s`` as for ``read_headers``.

    Raises
    ------
    ConfigError : recordings can be read, but no channel of any has a scored role; says what to do
    """
    readable = [header for header in headers if header.info is not None]
    if not readable or any(_has_scored_channel(header, settings) for header in readable):
        return
    stereo = [header.recording for header in readable if header.info and header.info.num_channels == 2]
    if scored_channels(("mixed",), settings) and _one_is_fake_stereo(stereo, settings, processes, time_limit_s):
        return
    layouts = Counter(header.info.num_channels for header in readable if header.info)
    found = ", ".join(f"{count} with {channels} channels" for channels, count in sorted(layouts.items()))
    raise ConfigError(
        f"nothing would be scored: of {len(readable)} readable recordings ({found}) no channel has one of the roles "
        f"{','.join(settings.roles)}. State who speaks on which channel, in the manifest's roles column or with "
        "--channel-roles agent,customer; or name other roles to score with --roles"
    )


def _has_scored_channel(header: Header, settings: RunSettings) -> bool:
    try:
        roles = channel_roles(header.recording, header.info.num_channels if header.info else 0, settings)
    except AudioError:
        return False
    return bool(scored_channels(roles, settings))


def _one_is_fake_stereo(
    recordings: Sequence[Recording], settings: RunSettings, processes: int, time_limit_s: float
) -> bool:
    """Whether a recording's two channels carry one signal; True as well where a process died of finding out."""
    if not processes or not recordings:
        return any(_is_fake_stereo(recording, settings.limits) for recording in recordings)
    with _pool(processes) as pool:
        found = pool.map(
            _is_fake_stereo, recordings, repeat(settings.limits), repeat(time_limit_s), chunksize=_STEREO_CHUNK
        )
        try:
            return any(found)
        except BrokenProcessPool:
            return True  # its row will tell; whether anything is scored, too
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _is_fake_stereo(recording: Recording, limits: LimitSettings, time_limit_s: float | None = None) -> bool:
    try:
        if time_limit_s is not None:
            set_alarm(time_limit_s)
        return audio.channels_carry_same_signal(recording, limits)
    except Exception:  # whatever it is, the worker that scores it will say
        return False
    finally:
        if time_limit_s is not None:
            clear_alarm()


def sample(headers: Sequence[Header]) -> list[Header]:
    """Choose what to measure this machine on: the first readable recordings up to ten minutes, or else the shortest."""
    readable = [header for header in headers if header.info is not None]
    some: list[Header] = []
    total_s = 0.0
    for header in readable:
        if _length_s(header) + total_s <= _CALIBRATION_S:
            some.append(header)
            total_s += _length_s(header)
    if readable and not some:
        some = [min(readable, key=_length_s)]
    return some


def _length_s(header: Header) -> float:
    return UNKNOWN_SECONDS if header.duration_s is None else header.duration_s


def calibrate(headers: Sequence[Header], model: Model, settings: RunSettings) -> float | None:
    """Measure seconds of audio scored per second by this process, after a warm-up on the first; None without any."""
    recordings = [header.recording for header in headers]
    if not recordings:
        return None
    list(score_recordings(recordings[:1], model, settings))
    started = time.perf_counter()
    outcomes = list(score_recordings(recordings, model, settings))
    scored_s = sum(outcome.duration_s or 0.0 for outcome in outcomes)
    return scored_s / (time.perf_counter() - started) or None


def _measure(
    headers: Sequence[Header], bundle: Bundle, engine: str, settings: RunSettings, processes: int
) -> float | None:
    """Calibrate as one of so many processes of a run would, in a process of its own; 0: in this one, as the only one.

    Raises
    ------
    BrokenProcessPool : a recording killed that process, made it eat memory, or kept it busy for too long
    """
    model = (Path(bundle.folder or "."), bundle.sha256)
    if not processes:
        return calibrate(headers, load_model(*model, available_cores(), engine), settings)
    with _pool(1, sharing=processes) as pool:
        return pool.submit(_load_and_calibrate, model, engine, headers, settings).result()


def _load_and_calibrate(
    model: tuple[Path, str], engine: str, headers: Sequence[Header], settings: RunSettings
) -> float | None:
    loaded = load_model(*model, 1, engine)
    set_alarm(_CALIBRATION_LIMIT_S + sum(_length_s(header) for header in headers))
    try:
        return calibrate(headers, loaded, settings)
    finally:
        clear_alarm()


@dataclass(frozen=True, slots=True)
class Survey:
    """What `batchser check` found; its fields are the keys of ``--json``."""

    recordings: int
    hours: float
    unknown_length: int
    formats: dict[str, int]
    channels: dict[str, int]
    truncated: int
    faults: list[tuple[str, str]]
    warning: str | None
    x_realtime: float | None
    workers: int
    run_minutes: float | None

    def page(self) -> str:
        """Write the survey as a page for people."""
        lines = [f"{self.recordings} recordings, {self.hours:.2f} hours of audio"]
        if self.unknown_length:
            lines.append(f"{self.unknown_length} do not state their length; they are not in the hours")
        lines += [f"  {count:8d}  {name}" for name, count in self.formats.items()]
        lines += [
            f"  {count:8d}  with {name} channel{'s' if name != '1' else ''}" for name, count in self.channels.items()
        ]
        if self.truncated:
            lines.append(f"{self.truncated} are truncated or have a wrong header: scored as far as they go")
        if self.faults:
            lines.append(f"{len(self.faults)} cannot be read:")
            lines += [f"  {call_id}: {fault}" for call_id, fault in self.faults[:_FAULTS_SHOWN]]
            if len(self.faults) > _FAULTS_SHOWN:
                lines.append(f"  and {len(self.faults) - _FAULTS_SHOWN} more")
        if self.warning:
            lines.append(f"warning: {self.warning}")
        if self.run_minutes is not None and self.x_realtime is not None:
            lines.append(
                f"a run will take about {self.run_minutes:.1f} minutes here with {self.workers} workers "
                f"(measured: {self.x_realtime:.0f} x real time a process)"
            )
        return "\n".join(lines)


def survey(
    inputs: Sequence[str],
    model: str,
    search: Sequence[Path],
    settings: RunSettings,
    workers: int | None,
    engine: str = AUTO_ENGINE,
) -> Survey:
    """Read all headers, and measure this machine on a few minutes of the recordings.

    Raises
    ------
    ConfigError : the inputs or the model are not usable
    """
    bundle = find_bundle(model, search)
    engine = choose_engine(bundle, engine)
    recordings = read_inputs(inputs, reserved_columns(bundle.labels), settings.limits.trust.max_rows).recordings
    processes = default_workers() if workers is None else workers
    started = time.perf_counter()
    headers = read_headers(recordings, settings.limits, processes)
    headers_s = time.perf_counter() - started
    warnings = []
    try:
        refuse_if_nothing_is_scored(headers, settings, processes)
    except ConfigError as error:
        warnings.append(str(error))
    infos = [header.info for header in headers if header.info is not None]
    total_s = sum(info.duration_s or 0.0 for info in infos)
    speed = None
    try:
        speed = _measure(sample(headers), bundle, engine, settings, processes)
    except BrokenProcessPool:
        warnings.append(
            "how long a run will take is not known: the process that scored some recordings to measure it died, grew "
            "too large, or took too long. If a recording was to blame, a run will tell which"
        )
    longest_s = max((info.duration_s or 0.0 for info in infos), default=0.0)
    return Survey(
        recordings=len(headers),
        hours=round(total_s / 3600, 4),
        unknown_length=sum(info.duration_s is None for info in infos),
        formats=dict(Counter(f"{info.container} {info.codec}, {info.rate_hz} Hz" for info in infos).most_common()),
        channels=dict(sorted(Counter(str(info.num_channels) for info in infos).items())),
        truncated=sum(info.truncated for info in infos),
        faults=[(header.recording.call_id, header.fault) for header in headers if header.fault is not None],
        warning="; ".join(warnings) or None,
        x_realtime=None if speed is None else round(speed, 1),
        workers=max(1, processes),
        run_minutes=None if speed is None else round((headers_s + run_s(total_s, longest_s, speed, processes)) / 60, 2),
    )


def run_s(total_s: float, longest_s: float, speed: float, processes: int) -> float:
    """Seconds that a run takes where one process scores ``speed`` seconds of audio a second.

    No quicker than its longest recording, which one process scores alone.
    """
    together = processes * _SIDE_BY_SIDE if processes > 1 else 1.0
    return _START_UP_S + max(total_s / together, longest_s) / speed
