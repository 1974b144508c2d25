"""The benchmark: speed and memory of the whole job and of each stage, beside the papers' way and peers, on one audio.

`make bench` runs it, `make bench-check` compares its ratios with those of ratios.json; README.md says how to read what
it prints. Nothing here asserts a time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from job import JobResult, run_in_one_process, run_job
from material import CALL_S, MOST_DISTINCT, make_calls, write_call

from batchser.bundle import find_bundle
from batchser.cluster import WORKER_ENVIRONMENT
from batchser.errors import BundleError
from batchser.settings import DEFAULT_MODEL, available_cores

if TYPE_CHECKING:
    from papers import PapersWay
    from roofline import Roofline
    from stages import Stage

_Result = TypeVar("_Result")

_LIBRARIES: Final = (
    "tensorflow", "keras", "openvino", "numpy", "scipy", "librosa", "soundfile", "distributed", "pyarrow",
)  # fmt: skip
#: Issue 2: what an 8-hour recording may need more than a 5-minute one.
_MEMORY_LIMIT_MB: Final = 150.0
_PEERS: Final = {"opensmile": "openSMILE eGeMAPS functionals", "wav2vec2": "network of wav2vec2-base's size"}
_RATIOS: Final = Path(__file__).with_name("ratios.json")
#: `make bench-check`: how much of a stored ratio must be left.
_KEPT: Final = 0.8


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table; what does not apply is None."""

    what: str
    x_realtime: float | None = None
    window_ms: float | None = None
    seconds: float | None = None
    peak_mb: float | None = None
    note: str = ""


# ------------------------------------------------------------------------------------------------------ measuring


def measure_job(folder: Path, hours: float, model: str, long_hours: float) -> tuple[list[Path], JobResult, list[Line]]:
    """Make the calls and run the whole job on them; then the memory of one long recording, unless it has 0 hours."""
    calls = make_calls(folder, hours)
    job = run_job(folder / "manifest.csv", folder / "results.parquet", model)
    cores = available_cores()
    lines = [
        Line(
            "whole job, default workers", job.x_realtime, None, job.seconds, job.peak_all_mb,
            f"{job.audio_s / 3600:.2f} h in {job.num_recordings} calls; driver {job.peak_driver_mb:.0f} MB, largest "
            f"worker {job.peak_worker_mb:.0f} MB",
        ),
        Line("  a core", job.x_realtime / cores, None, None, None, f"of {cores}"),
    ]  # fmt: skip
    return calls, job, lines + (measure_long(folder, model, long_hours) if long_hours else [])


def measure_long(folder: Path, model: str, long_hours: float) -> list[Line]:
    """Seconds and peak memory of one short and one long recording, scored in one process."""
    lines, peaks_mb = [], []
    for name, seconds in (("short", CALL_S), ("long", long_hours * 3600)):
        recording = folder / f"{name}.wav"
        write_call(recording, seconds, seed=0)
        took_s, peak_mb = run_in_one_process(recording, folder / f"{name}.parquet", model)
        recording.unlink()
        peaks_mb.append(peak_mb)
        length = f"{seconds / 3600:g} hours" if seconds >= 3600 else f"{seconds / 60:g} minutes"
        lines.append(Line(f"one recording of {length}", seconds / took_s, None, took_s, peak_mb, "--workers 0"))
    more_mb = peaks_mb[1] - peaks_mb[0]
    verdict = "pass" if more_mb <= _MEMORY_LIMIT_MB else "FAIL"
    note = f"{verdict}: at most {_MEMORY_LIMIT_MB:.0f} MB more is allowed"
    return [*lines, Line("  memory of the long one over the short", peak_mb=more_mb, note=note)]


def in_fresh_process(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call a function in a new process whose matrix libraries use one thread: they read the environment once."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _stages(calls: Sequence[Path], model: str, folder: Path) -> list[Stage]:
    from stages import measure_stages  # loads librosa and TensorFlow: never into the parent

    return measure_stages(calls, model, folder)


def _roofline(model: str) -> Roofline | None:
    from roofline import measure_roofline

    return measure_roofline(find_bundle(model))


def _papers(calls: Sequence[Path], num_windows: int) -> PapersWay:
    from papers import measure_papers

    return measure_papers(calls, num_windows)


def _save_windows(calls: Sequence[Path], num_windows: int, path: Path) -> None:
    import numpy as np
    from papers import some_windows

    np.save(path, np.stack(some_windows(calls, num_windows)))


def measure_peer(python: str, peer: str, windows: Path) -> tuple[str, float] | str:
    """What a peer is, and its milliseconds a window; or why it could not be asked."""
    command = [python, str(Path(__file__).with_name("peers.py")), peer, str(windows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    found = json.loads(done.stdout.splitlines()[-1])
    return f"{peer} {found['version']}", found["seconds"] / found["windows"] * 1000


# ------------------------------------------------------------------------------------------------------ reporting


def stage_lines(stages: Sequence[Stage]) -> list[Line]:
    """Each stage, one thread: recorded seconds a second, and milliseconds for a window that it works on."""
    return [
        Line(
            f"stage: {stage.name}",
            stage.audio_s / stage.seconds,
            stage.seconds / stage.num_windows * 1000 if stage.num_windows else None,
            stage.seconds,
            note=f"{stage.num_windows} windows",
        )
        for stage in stages
    ]


def roofline_lines(roofline: Roofline | None, stages: Sequence[Stage]) -> list[Line]:
    """What part of a stage's time its arithmetic alone needs."""
    if roofline is None:
        return [Line("roofline", note="left out: not a network of OpenVINO's on mel and pitch")]
    taken_ms = {stage.name: stage.seconds / stage.num_windows * 1000 for stage in stages if stage.num_windows}
    lines = []
    for name, floor_ms, what in (
        ("features", roofline.features_ms, "the FFT and the matrices, of one scored channel and one other"),
        ("scoring", roofline.scoring_ms, "the engine's own products at the network's shapes"),
    ):
        if name in taken_ms:
            lines.append(Line(f"roofline: {name}", None, floor_ms, note=what))
            part = floor_ms / taken_ms[name]
            lines.append(Line(f"  {name}: arithmetic ÷ time", part, note=f"ratio: {part:.0%} of the time"))
    return lines


def paper_lines(papers: PapersWay, job: JobResult) -> list[Line]:
    """The papers' way and our ratios to it, per recorded second of the same calls."""
    lines = [
        Line("papers: resample to 22,050 Hz", window_ms=papers.resample_ms, note="librosa (soxr)"),
        Line("papers: features", window_ms=papers.features_ms, note="librosa, one window at a time"),
        Line("papers: tonnetz", window_ms=papers.tonnetz_ms, note="librosa's, of the harmonic part"),
        Line("papers: dual LSTM 256/128", window_ms=papers.predict_ms, note="Keras predict, one window at a time"),
    ]
    about = f"one core, from {papers.num_windows} windows"
    lines += _against("papers' way", papers.window_ms, job, about)
    return lines + _against("papers' way, tonnetz from the chroma at hand", papers.cheap_window_ms, job, about)


def _against(what: str, window_ms: float, job: JobResult, about: str) -> list[Line]:
    """Another way on one core: of all windows of the scored channel, and of those that our gate lets pass."""
    all_per_s = job.num_windows / 2 / job.audio_s
    ways = [("", all_per_s, f"{about}; all windows of the scored channel: it has no gate")]
    if job.num_scored:
        ways.append((" on scored windows only", job.num_scored / job.audio_s, "were it told what our gate lets pass"))
    lines = []
    for which, per_s, note in ways:
        speed = 1000 / (window_ms * per_s)
        lines += [
            Line(f"{what}{which}", speed, window_ms, note=note),
            Line(f"  whole job ÷ {what}{which}, in all", job.x_realtime / speed, note="ratio; our cores to its one"),
            Line(f"  whole job ÷ {what}{which}, a core", job.x_realtime / available_cores() / speed, note="ratio"),
        ]
    return lines


def worse_ratios(found: dict[str, float], stored: dict[str, float]) -> list[str]:
    """Say which ratios are less than _KEPT of those stored; one that is no longer measured is, too."""
    return [
        f"{what.strip()}: {found.get(what, 0.0):.3g}, stored {ratio:.3g}"
        for what, ratio in stored.items()
        if found.get(what, 0.0) < _KEPT * ratio
    ]


def machine(load_before: float) -> dict[str, Any]:
    """What the numbers hold for."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cores": available_cores(),
        "processor": _processor(),
        "load_before": round(load_before, 2),  # of an idle machine: near 0
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }


def _commit() -> str:
    """The commit of this tree, with a + where files differ from it."""
    try:
        git = ("git", "-C", str(Path(__file__).parent))
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(lines: Sequence[Line]) -> str:
    """Write the lines as an aligned table."""
    rows = [("", "x real time", "ms/window", "seconds", "peak MB", "")]
    rows += [
        (
            line.what,
            _number(line.x_realtime, 1),
            _number(line.window_ms, 3),
            _number(line.seconds, 2),
            _number(line.peak_mb, 0),
            line.note,
        )
        for line in lines
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(row[c].rjust(widths[c]) for c in range(1, 5)), row[5]]).rstrip()
        for row in rows
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


# ------------------------------------------------------------------------------------------------------ the command


@click.command()
@click.option("--hours", type=click.FloatRange(min=0.01), default=10.0, show_default=True, help="Audio for the job.")
@click.option("--long-hours", type=click.FloatRange(min=0), default=8.0, show_default=True,
              help="Length of the one long recording of the memory check; 0 leaves it out.")  # fmt: skip
@click.option("--stage-calls", type=click.IntRange(0, MOST_DISTINCT), default=MOST_DISTINCT, show_default=True,
              help="Calls for the stages one by one; 0 leaves them out.")  # fmt: skip
@click.option("--paper-windows", type=click.IntRange(min=0), default=60, show_default=True,
              help="Windows for the papers' way and the peers; 0 leaves them out.")  # fmt: skip
@click.option("--peers", default=sys.executable, metavar="PYTHON",
              help="Python that has opensmile and torch; what it lacks is left out. Default: this one.")  # fmt: skip
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Bundle, by name or folder.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the results here.")
@click.option("--store", is_flag=True, help="Keep this run's ratios for --check.")
@click.option("--check", is_flag=True, help="End with 1 if a ratio has fallen by more than 20 % of the one kept.")
def main(
    hours: float,
    long_hours: float,
    stage_calls: int,
    paper_windows: int,
    peers: str,
    model: str,
    json_path: Path | None,
    store: bool,
    check: bool,
) -> None:
    """Measure speed and memory of `batchser run` and of its stages, and other ways beside them."""
    if store and check:
        raise click.UsageError("--store and --check: give one of them")
    load_before = os.getloadavg()[0]
    try:
        find_bundle(model)
    except BundleError as error:
        raise click.UsageError(str(error)) from error
    setting = {"hours": hours, "model": model, "cores": available_cores()}
    stored = stored_ratios(setting) if check else {}
    with tempfile.TemporaryDirectory(prefix="batchser-bench-") as name:
        folder = Path(name)
        calls, job, lines = measure_job(folder, hours, model, long_hours)
        # For the processes below, as workers have it; the job itself chose freely.
        os.environ.update({key: str(value) for key, value in WORKER_ENVIRONMENT.items()})
        if stage_calls:
            stages = in_fresh_process(_stages, calls[:stage_calls], model, folder)
            lines += stage_lines(stages) + roofline_lines(in_fresh_process(_roofline, model), stages)
        if paper_windows:
            lines += paper_lines(in_fresh_process(_papers, calls, paper_windows), job)
            in_fresh_process(_save_windows, calls, paper_windows, folder / "windows.npy")
            for peer, what in _PEERS.items():
                found = measure_peer(peers, peer, folder / "windows.npy")
                if isinstance(found, str):
                    lines.append(Line(what, note=f"left out: {found}"))
                else:
                    lines += _against(what, found[1], job, f"one core, {found[0]}")
    about = machine(load_before)
    if json_path is not None:
        results = {"machine": about, "model": model, "job": asdict(job), "lines": [asdict(line) for line in lines]}
        json_path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(", ".join(f"{key} {value}" for key, value in about.items()))
    click.echo(
        f"{job.audio_s / 3600:.2f} hours of 8 kHz mu-law calls, two channels, the customer's scored, model {model}: "
        f"{job.num_windows} windows, {job.num_speech} speech, {job.num_scored} scored "
        f"({2 * job.num_scored / max(1, job.num_windows):.0%} of the scored channel)\n"
    )
    click.echo(table(lines))
    ratios = {line.what: line.x_realtime for line in lines if "÷" in line.what and line.x_realtime is not None}
    if store:
        kept = {"machine": about, "setting": setting, "ratios": {what: round(r, 4) for what, r in ratios.items()}}
        _RATIOS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if check:
        asked, left_out = {}, []
        for what, ratio in stored.items():
            if what in ratios or not any(peer in what for peer in _PEERS.values()):
                asked[what] = ratio
            else:
                left_out.append(f"not compared, the peer is not here: {what.strip()}")
        worse = worse_ratios(ratios, asked)
        told = ["fallen:", *worse] if worse else [f"{len(asked)} ratios are as good as those kept"]
        click.echo("\n" + "\n".join(left_out + told))
        sys.exit(1 if worse else 0)


def stored_ratios(setting: dict[str, Any]) -> dict[str, float]:
    """Read what ``--store`` kept, of the same hours, model and cores.

    Raises
    ------
    click.UsageError : there is nothing, or of another setting
    """
    try:
        kept = json.loads(_RATIOS.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(
            f"{_RATIOS}: cannot be read ({error.strerror}); keep some ratios with --store"
        ) from error
    if kept["setting"] != setting:
        raise click.UsageError(f"{_RATIOS}: ratios of {kept['setting']} are kept, this is {setting}; repeat with those")
    ratios: dict[str, float] = kept["ratios"]
    return ratios


if __name__ == "__main__":
    sys.exit(main())
