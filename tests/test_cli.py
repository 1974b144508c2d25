"""The command line: what it says, what it refuses, and the exit code that it promises."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import LABELS, RATE_HZ, call, speechlike, write

from batchser import __version__, cli, runner
from batchser.bundle import Bundle
from batchser.dispatch import RunError
from batchser.runner import Job, Report
from batchser.settings import DEFAULT_MODEL, LimitSettings, RunSettings, SummarySettings, TrustSettings
from batchser.sink import SinkError

COMMANDS = sorted(cli.cli.commands)
OPTIONS = [
    pytest.param(command, option, id=f"{command} {option.name}")
    for command in COMMANDS
    for option in cli.cli.commands[command].params
    if isinstance(option, click.Option)
]
#: Everything of DESIGN.md's --json-summary, in its order.
SUMMARY_KEYS = [
    "run_id",
    "exit_code",
    "started_at",
    "seconds",
    "recordings",
    "recordings_reused",
    "by_status",
    "audio_s",
    "scored_windows",
    "x_realtime",
    "model",
    "out",
    "segments",
]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def batchser(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle, tmp_path: Path
) -> Iterator[Command]:
    """`batchser ARGUMENTS` in this process, in an empty folder, with the tiny bundle installed."""
    assert tiny_bundle.folder is not None
    monkeypatch.setenv("BATCHSER_MODELS", str(tiny_bundle.folder.parent))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return Ended(ended.value.code, *capsys.readouterr())  # type: ignore[arg-type]

    kept = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, kept)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good recordings."""
    folder = tmp_path_factory.mktemp("recordings")
    write(folder / "mono.wav", call())
    write(folder / "quiet.flac", speechlike(7, 4, level=0.02))
    return folder


@pytest.fixture(scope="module")
def mixed(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same two, one of two channels and a broken one."""
    folder = tmp_path_factory.mktemp("mixed")
    shutil.copytree(recordings, folder, dirs_exist_ok=True)
    write(folder / "two.wav", speechlike(6, 5), speechlike(6, 6))
    (folder / "broken.wav").write_text("no audio at all, only words\n" * 9, encoding="utf-8")
    return folder


RUN = ("--out", "r.parquet", "--model", "tiny", "--workers", "0")


def here() -> list[str]:
    """Everything in the current folder."""
    return sorted(path.name for path in Path().iterdir())


# ---------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(cli.cli, [command, "--help"])
    assert result.exit_code == 0
    text = cli.cli.commands[command].help or ""
    assert len(text) > 40
    assert text.split(".")[0].split("\n")[0][:40] in result.output
    assert command in CliRunner().invoke(cli.cli, ["-h"]).output


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_every_option_has_help(command: str, option: click.Option) -> None:
    assert option.help
    assert option.help.endswith(".")


def test_commands_are_those_of_the_design() -> None:
    assert set(COMMANDS) == {
        "run",
        "check",
        "score",
        "models",
        "vacuum",
        "report",
        "clips",
        "dashboard",
        "train",
        "evaluate",
        "tune",
    }
    of_run = {option.opts[0] for option in cli.cli.commands["run"].params if isinstance(option, click.Option)}
    assert of_run == {
        *("--out", "--segments", "--model", "--roles", "--channel-roles", "--workers", "--scheduler", "--config"),
        *("--fresh", "--quiet", "--json-summary", "--engine", "--time-limit", "--retry-failed"),
        *("--metrics", "--log-format", "--root", "--protocols", "--max-rows"),
    }
    for words in ("Exit codes:", "0 every", "1 done", "2 wrong", "3 the run", "130 it was interrupted"):
        assert words in (cli.cli.commands["run"].help or "")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom batchser.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    heavy = {"tensorflow", "keras", "librosa", "numpy", "pandas", "dask", "distributed", "pyarrow", "scipy", "av"}
    assert "click" in done.stderr.split()
    assert not heavy & set(done.stderr.split())


def test_the_script_tells_its_version() -> None:
    script = Path(sys.executable).with_name("batchser")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"batchser, version {__version__}\n"


LATE = """
import atexit, os
from batchser.cli import cli, console
from batchser.errors import ConfigError

class Late:
    def __del__(self, abort=os.abort):
        abort()

late = Late()

@cli.command()
def fail():
    atexit.register(print, "the end that was registered")
    raise ConfigError("on purpose")

console()
"""


@pytest.mark.parametrize(("argument", "code", "out"), [("--version", 0, "version"), ("fail", 2, "the end that was")])
def test_the_script_ends_with_its_code_though_python_aborts_while_it_is_taken_down(
    argument: str, code: int, out: str
) -> None:
    """As a thread of Arrow's may make it do, when all is done."""
    ended = subprocess.run([sys.executable, "-c", LATE, argument], capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    assert out in ended.stdout
    assert ("error: on purpose" in ended.stderr) == (argument == "fail")


def test_the_script_ends_quietly_where_nobody_listens() -> None:
    done = subprocess.run(
        ["sh", "-c", '"$0" --version >&-', Path(sys.executable).with_name("batchser")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "atexit" not in done.stderr


# ----------------------------------------------------------------------------------------------------------- run


def test_a_good_run(batchser: Command, recordings: Path) -> None:
    ended = batchser("run", recordings, *RUN)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0] == "2 recordings (2 ok); 0 were done before"
    assert lines[1].startswith("0.01 hours of audio, ")
    assert "windows scored by tiny, in" in lines[1]
    assert lines[2:] == [f"calls     {Path.cwd() / 'r.parquet'}", f"segments  {Path.cwd() / 'r.segments.parquet'}"]
    assert here() == ["r.parquet", "r.segments.parquet"]
    assert pd.read_parquet("r.parquet")["call_id"].tolist() == ["mono", "quiet"]

    again = batchser("run", recordings, *RUN)
    assert again.code == 0
    assert again.out.splitlines()[0] == "2 recordings (2 ok); 2 were done before"
    assert "nothing was left to score" in again.out
    assert "is finished: same inputs, model and settings" in again.err


def test_a_log_gets_plain_lines(batchser: Command, recordings: Path) -> None:
    errors = batchser("run", recordings, *RUN).err
    assert not set("\r\x1b\t") & set(errors)
    lines = errors.splitlines()
    assert lines[:2] == ["reading 2 headers", "scoring 0.01 hours of audio"]
    assert lines[-1].startswith("100% 2 recordings, 0.01 h of audio")


def test_faults_are_told_and_end_with_1(batchser: Command, mixed: Path) -> None:
    ended = batchser("run", mixed, *RUN)
    assert ended.code == 1
    assert "4 recordings (1 unreadable, 1 not_scored, 2 ok)" in ended.out
    assert "  unreadable: broken: the file starts with text, expected audio" in ended.err
    assert "Traceback" not in ended.err
    assert batchser("run", mixed, *RUN).code == 1  # finished, and still so


def test_quiet_says_nothing(batchser: Command, mixed: Path) -> None:
    assert batchser("run", mixed, *RUN, "--quiet", "--json-summary", "s.json") == Ended(1, "", "")
    assert batchser("run", mixed, *RUN, "--quiet") == Ended(1, "", "")
    assert here() == ["r.parquet", "r.segments.parquet", "s.json"]


def test_the_json_summary(batchser: Command, mixed: Path) -> None:
    assert batchser("run", mixed, *RUN, "--json-summary", "s.json").code == 1
    summary = json.loads(Path("s.json").read_text(encoding="utf-8"))
    assert list(summary) == SUMMARY_KEYS
    assert summary["exit_code"] == 1
    assert (summary["recordings"], summary["recordings_reused"]) == (4, 0)
    assert summary["by_status"] == {"unreadable": 1, "not_scored": 1, "ok": 2}
    assert summary["audio_s"] == 28
    assert summary["scored_windows"] == pd.read_parquet("r.parquet")["num_scored"].sum()
    assert summary["run_id"] == pq.read_schema("r.parquet").metadata[b"batchser.run_id"].decode()
    assert summary["model"] == "tiny"
    assert [Path(summary[key]).name for key in ("out", "segments")] == ["r.parquet", "r.segments.parquet"]
    assert summary["x_realtime"] > 0

    batchser("run", mixed, *RUN, "--json-summary", "s.json")
    again = json.loads(Path("s.json").read_text(encoding="utf-8"))
    assert list(again) == SUMMARY_KEYS
    assert again["recordings_reused"] == again["recordings"] == 4
    same = ("run_id", "by_status", "audio_s", "scored_windows", "out", "segments", "exit_code")
    assert [again[key] for key in same] == [summary[key] for key in same]


def test_a_json_summary_that_cannot_be_written(batchser: Command, recordings: Path) -> None:
    ended = batchser("run", recordings, *RUN, "--json-summary", "nowhere/s.json")
    assert ended.code == 2
    assert "--json-summary nowhere/s.json: there is no folder" in ended.err
    assert not here()
    ended = batchser("run", recordings, *RUN, "--json-summary", "/dev/full")
    assert ended.code == 3
    assert "error: --json-summary /dev/full: cannot be written (No space left on device); the tables are" in ended.err
    assert here() == ["r.parquet", "r.segments.parquet"]


def test_segments_where_they_are_wanted(batchser: Command, recordings: Path) -> None:
    Path("elsewhere").mkdir()
    assert batchser("run", recordings, *RUN, "--segments", "elsewhere/w.parquet").code == 0
    assert here() == ["elsewhere", "r.parquet"]
    assert len(pd.read_parquet("elsewhere/w.parquet")) == 8


# ------------------------------------------------------------------------------------------------- exit code 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "."), "Missing option '--out'"),
        (("run", "--out", "r.parquet"), "Missing argument 'INPUT...'"),
        (("run", ".", "--out", "r.parquet", "--colour"), "No such option"),
        (("run", ".", "--out", "r.parquet", "--workers", "-1"), "'--workers'"),
        (("run", ".", "--out", "r.parquet", "--workers", "two"), "'--workers'"),
        (("run", ".", "--out", "r.parquet", "--config", "no.toml"), "'no.toml' does not exist"),
        (("fly",), "No such command 'fly'"),
        (("score",), "Missing argument 'FILE...'"),
        (("check",), "Missing argument 'INPUT...'"),
        (("train", "--out", "b"), "Missing option '--data'"),
        (("train", "--data", "nowhere", "--out", "b"), "'nowhere' does not exist"),
        (("train", "--data", "."), "Missing option '--out'"),
        (("evaluate",), "Missing option '--data'"),
        (("evaluate", "--data", ".", "--calls", "nowhere"), "'nowhere' does not exist"),
    ],
)
def test_wrong_usage(batchser: Command, arguments: tuple[str, ...], words: str) -> None:
    ended = batchser(*arguments)
    assert ended.code == 2
    assert words in ended.err
    assert not ended.out
    assert not here()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--roles", "boss"), "error: --roles: received 'boss', expected a comma-separated list of agent, customer"),
        (("--channel-roles", "all,agent"), "error: --channel-roles: received 'all,agent', expected"),
        (("--roles", ","), "error: --roles: received ',', expected"),
        (("--model", "no-such"), "error: model 'no-such': no such bundle. Installed: "),
        (("--model", "./no-such"), "no bundle.json there"),
        (("--out", "folder.parquet/no/results"), "error: --out folder.parquet/no/results: there is no folder"),
        (("--out", "folder.parquet"), "error: --out folder.parquet: is a folder"),
        (("--out", "no/r.parquet"), "error: --out no/r.parquet: there is no folder"),
        (("--out", "s3://bucket/r.parquet"), "error: --out s3://bucket/r.parquet: expected a local path"),
        (("--segments", "w.csv"), "error: --segments w.csv: expected a file name that ends in .parquet"),
        (("nowhere",), "error: nowhere: no such file or folder"),
        (("--root", "nowhere"), "error: --root nowhere: there is no folder"),
    ],
)
def test_wrong_configuration(batchser: Command, recordings: Path, arguments: tuple[str, ...], words: str) -> None:
    Path("folder.parquet").mkdir()
    ended = batchser("run", recordings, *RUN, *arguments)
    assert ended.code == 2
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert not ended.out
    assert here() == ["folder.parquet"]


def test_an_unknown_model_lists_the_installed(batchser: Command, recordings: Path) -> None:
    errors = batchser("run", recordings, *RUN, "--model", "no-such").err
    assert "tiny" in errors.split("Installed: ")[1].split(". ")[0].split(", ")
    assert "BATCHSER_MODELS" in errors


def test_a_folder_as_out_is_a_dataset_that_grows_and_forgets(batchser: Command, recordings: Path) -> None:
    Path("night").mkdir()
    ended = batchser("run", recordings, *RUN, "--out", "night/")
    assert ended.code == 0, ended.err
    assert f"calls     {Path('night').absolute()}/calls" in ended.out
    assert "0 were done before" in ended.out
    again = batchser("run", recordings, *RUN, "--out", "night")
    assert (again.code, "nothing was left to score" in again.out) == (0, True)
    calls = pd.read_parquet("night/calls")
    day, name = str(calls["call_date"][0]), str(calls["call_id"][0])
    dry = batchser("vacuum", "night", "--call", name, "--dry-run")
    assert dry == Ended(0, "would forget 0 days and 1 calls\n", "")
    gone = batchser("vacuum", "night", "--call", name, "--call", "nobody")
    assert gone == Ended(1, "forgot 0 days and 1 calls\n", "nobody: no such call in the dataset\n")
    assert batchser("vacuum", "night", "--older-than", "1").out == "forgot 0 days and 0 calls\n"
    assert len(pd.read_parquet(f"night/calls/call_date={day}")) == len(calls) - 1


def test_vacuum_wants_to_know_what(batchser: Command) -> None:
    assert batchser("vacuum", "night").err == "error: nothing to forget: give --older-than DAYS, or --call CALL_ID\n"


@pytest.mark.parametrize("file", ["weights.npz", "bundle.json"])
def test_a_tampered_bundle_is_refused(batchser: Command, recordings: Path, tiny_bundle: Bundle, file: str) -> None:
    assert tiny_bundle.folder is not None
    shutil.copytree(tiny_bundle.folder, "copy")
    path = Path("copy") / file
    was = path.read_bytes()
    path.write_bytes(was.replace(b'"temperature": 1.5', b'"temperature": 0.1') if file == "bundle.json" else was + b"x")
    for command in (("run", recordings, *RUN), ("check", recordings), ("score", recordings / "mono.wav")):
        ended = batchser(*command, "--model", "./copy")
        assert ended.code == 2
        assert f"copy/{file}" in ended.err
        assert "Traceback" not in ended.err
    assert here() == ["copy"]


def test_all_structural_faults_of_a_manifest_are_told(batchser: Command) -> None:
    Path("m.csv").write_text(
        "path,call_id,roles,started_at\n"
        "a.wav,same,customer,2026-03-01\n"
        "b.wav,other,boss,2026-03-01\n"
        "c.wav,same,customer,2026-03-01\n"
        "d.wav,last,customer,yesterday\n",
        encoding="utf-8",
    )
    ended = batchser("run", "m.csv", *RUN)
    assert ended.code == 2
    lines = ended.err.splitlines()
    assert len(lines) == 3
    for words in (("line 3", "roles", "boss"), ("line 5", "started_at", "yesterday"), ("line 4", "line 2", "same")):
        assert any(all(word in line for word in words) for line in lines), words
    assert all(line.startswith("error: m.csv") for line in lines)
    assert here() == ["m.csv"]


def test_a_run_that_would_score_nothing(batchser: Command, mixed: Path) -> None:
    ended = batchser("run", mixed / "two.wav", *RUN)
    assert ended.code == 2
    assert "--channel-roles agent,customer" in ended.err
    assert not here()
    assert batchser("run", mixed / "two.wav", *RUN, "--channel-roles", "agent,customer").code == 0


# ------------------------------------------------------------------------------------------ exit codes 3 and 130


@contextmanager
def full_disk() -> Iterator[None]:
    """Let this process write no more than a few bytes into a file: as on a full disk, writes fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_breaks_the_run_off(batchser: Command, recordings: Path) -> None:
    with full_disk():
        ended = batchser("run", recordings, *RUN)
    assert ended.code == 3
    assert "error: " in ended.err
    assert "cannot be written" in ended.err
    assert "repeat the same command" in ended.err
    assert "Traceback" not in ended.err
    assert here() == ["r.parquet.work"]
    assert batchser("run", recordings, *RUN).code == 0
    assert here() == ["r.parquet", "r.segments.parquet"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SinkError("the disk is gone"), 3, "error: the disk is gone\n"),
        (RunError("the Dask scheduler is gone"), 3, "error: the Dask scheduler is gone\n"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted; a run keeps what is done: the same command, without --fresh, resumes\n",
        ),
    ],
)
def test_a_run_that_breaks_off(
    batchser: Command, recordings: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def breaks(*_: object) -> None:
        raise error

    monkeypatch.setattr(runner, "score_shard", breaks)
    ended = batchser("run", recordings, *RUN)
    assert ended.code == code
    assert ended.err.endswith(said)
    assert not ended.out
    assert "Traceback" not in ended.err


def test_an_error_of_ours_is_logged_whole(
    batchser: Command, recordings: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(runner, "score_shard", breaks)
    assert batchser("run", recordings, *RUN).code == 3
    (record,) = caplog.records
    assert "the same command resumes" in record.getMessage()
    assert record.exc_info is not None
    assert "nobody thought of this" in str(record.exc_info[1])


# -------------------------------------------------------------------------------------------------------- config


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Collects jobs instead of doing them."""
    taken: list[Job] = []

    def take(job: Job, progress: Any) -> Report:
        taken.append(job)
        return Report("id", 0, "", 1.0, 0, 0, {}, 0.0, 0, 0.0, "tiny", "r.parquet", "w.parquet")

    monkeypatch.setattr(runner, "run", take)
    monkeypatch.setattr(runner, "faults_of", lambda *_, **__: [])
    return taken


CONFIG: dict[str, object] = {
    "out": "night.parquet",
    "segments": "windows.parquet",
    "model": "mine",
    "roles": "customer",
    "channel-roles": ["agent", "customer"],
    "workers": 3,
    "engine": "openvino",
    "scheduler": "tcp://host:8786",
    "fresh": True,
    "time_limit": 30,
    "retry_failed": True,
    "quiet": True,
    "json_summary": "s.json",
    "metrics": "m.prom",
    "log_format": "json",
    "root": "/usr",
    "protocols": ["s3", "https"],
    "max_rows": 5,
}


def write_config(*lines: str, **values: object) -> str:
    told = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    Path("c.toml").write_text("\n".join([*told, *lines, ""]), encoding="utf-8")
    return "c.toml"


def test_every_option_of_run_has_its_key(batchser: Command, jobs: list[Job]) -> None:
    options = {option.name for option in cli.cli.commands["run"].params if isinstance(option, click.Option)}
    assert {key.replace("-", "_") for key in CONFIG} == options - {"config"}
    tables = ["[limits]", "max_channels = 2", "max_duration_s = 3600", "[summary]", "trend_threshold = 0.2"]
    config = write_config(*tables, **CONFIG)
    assert batchser("run", "in.csv", "--config", config) == Ended(0, "", "")
    settings = RunSettings(
        roles=("customer",),
        channel_roles=("agent", "customer"),
        limits=LimitSettings(max_channels=2, max_duration_s=3600.0, trust=TrustSettings("/usr", ("s3", "https"), 5)),
        summary=SummarySettings(trend_threshold=0.2),
    )
    (job,) = jobs
    assert dataclasses.replace(job, search=()) == Job(
        inputs=("in.csv",),
        out="night.parquet",
        segments="windows.parquet",
        model="mine",
        settings=settings,
        workers=3,
        scheduler="tcp://host:8786",
        engine="openvino",
        fresh=True,
        retry_failed=True,
        time_limit_s=30.0,
    )
    assert job.settings.fingerprint() == settings.fingerprint()
    assert Path("s.json").exists()


def test_machines_are_told_in_json_how_a_run_ended(batchser: Command, recordings: Path) -> None:
    watched = ("--log-format", "json", "--metrics", "m.prom")
    ended = batchser("run", recordings, *RUN, "--out", "no/r.parquet", *watched)
    lines = [json.loads(line) for line in ended.err.splitlines()]
    assert ended.code == 2
    assert {line["level"] for line in lines} == {"error"}
    assert lines[0]["message"].startswith("--out no/r.parquet: there is no folder")
    assert "batchser_exit_code 2\n" in Path("m.prom").read_text()
    assert "last_success" not in Path("m.prom").read_text()
    ended = batchser("run", recordings, *RUN, "--out", "r.parquet", *watched)
    lines = [json.loads(line) for line in ended.err.splitlines()]
    assert ended.code == 0
    assert lines[-1]["event"] == "finished"
    assert {line["run_id"] for line in lines} == {lines[-1]["run_id"]} != {""}
    assert 'batchser_recordings{status="ok"}' in Path("m.prom").read_text()
    assert batchser("run", recordings, "--out", "r.parquet", "--metrics", "no/m.prom").err == (
        f"error: --metrics no/m.prom: there is no folder {Path('no').absolute()}\n"
    )


def test_the_command_line_wins(batchser: Command, jobs: list[Job]) -> None:
    config = write_config(**CONFIG)
    options = ("--out", "other.parquet", "--roles", "all", "--workers", "0", "--model", "tiny")
    for arguments in (("--config", config, *options), (*options, "--config", config)):
        batchser("run", "in.csv", *arguments)
        job = jobs.pop()
        assert (job.out, job.settings.roles, job.workers, job.model) == ("other.parquet", ("all",), 0, "tiny")
        assert job.segments == "windows.parquet"


def test_defaults_without_a_config(batchser: Command, jobs: list[Job]) -> None:
    batchser("run", "in.csv", "more", "--out", "r.parquet")
    (job,) = jobs
    assert job.model == DEFAULT_MODEL
    assert job.settings == RunSettings()
    assert job.inputs == ("in.csv", "more")
    assert (job.workers, job.scheduler, job.segments, job.fresh) == (None, None, None, False)
    assert job.engine == "auto"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("outt = 'r'\ninputs = ['a']\nmodels = 1", ["'outt' is no option of `batchser run`", "'inputs'", "'models'"]),
        ("config = 'other.toml'", ["'config' is no option", "expected some of channel_roles, engine, fresh,"]),
        ("limits = 3", ["'limits' is no option"]),
        ("[limits]\nmax_chanels = 2\n[summary]\nlevel = 1", ["[limits] max_chanels: no such key", "[summary] level"]),
        (
            "[limits]\nmax_channels = '2'",
            ["[limits] max_channels: received '2', expected a whole number of"],
        ),
        ("[limits]\nmax_channels = 2.5", ["[limits] max_channels: received 2.5, expected a whole number"]),
        ("[limits]\nmax_duration_s = -1\nmin_rate_hz = true", ["received -1, expected a number", "received True"]),
        ("roles = 'boss'\n[limits]\nmax = 1", ["--roles: received 'boss'", "[limits] max: no such key"]),
        ("workers = 'two'", ["'--workers'", "'two'"]),
        ("workers = -1", ["'--workers'", "-1"]),
        ("quiet = 'perhaps'", ["'--quiet'", "perhaps"]),
        ("out = ", ["--config c.toml: cannot be read as TOML"]),
        ("\xff", ["--config c.toml: cannot be read as TOML"]),
    ],
)
def test_every_fault_of_a_config_is_told(batchser: Command, jobs: list[Job], text: str, words: list[str]) -> None:
    Path("c.toml").write_text(text, encoding="latin-1")
    ended = batchser("run", "in.csv", "--out", "r.parquet", "--config", "c.toml")
    assert ended.code == 2
    for word in words:
        assert word in ended.err
    assert not jobs
    assert here() == ["c.toml"]


def test_check_and_score_take_a_config_too(batchser: Command, recordings: Path) -> None:
    config = write_config("[limits]", "max_duration_s = 10", model="tiny")
    ended = batchser("check", recordings, "--config", config)
    assert ended.code == 1
    assert "mono: the recording lasts 15 s or more, expected at most 10 s" in ended.out
    ended = batchser("score", recordings / "mono.wav", "--config", config)
    assert ended.code == 1
    assert "the recording lasts 15 s or more" in ended.err
    unknown = batchser("check", recordings, "--config", write_config(out="r.parquet"))
    assert unknown.code == 2
    assert "'out' is no option of `batchser check`" in unknown.err


# --------------------------------------------------------------------------------------- check, score and models


def test_check_prints_a_page(batchser: Command, recordings: Path, mixed: Path) -> None:
    ended = batchser("check", recordings, "--model", "tiny", "--workers", "4")
    assert ended.code == 0
    assert ended.out.startswith("2 recordings, 0.01 hours of audio\n")
    assert "         1  wav pcm_16, 8000 Hz\n" in ended.out
    assert "         2  with 1 channel\n" in ended.out
    assert "minutes here with 4 workers" in ended.out
    assert not ended.err
    ended = batchser("check", mixed, "--model", "tiny")
    assert ended.code == 1
    assert "1 cannot be read:\n  broken: the file starts with text" in ended.out
    ended = batchser("check", mixed / "two.wav", "--model", "tiny")
    assert ended.code == 0
    assert "warning: nothing would be scored" in ended.out
    assert not here()


def test_check_prints_json(batchser: Command, mixed: Path) -> None:
    ended = batchser("check", mixed, "--model", "tiny", "--json")
    assert ended.code == 1
    found = json.loads(ended.out)
    assert found["recordings"] == 4
    assert found["channels"] == {"1": 2, "2": 1}
    assert found["faults"][0][0] == "broken"
    assert found["x_realtime"] > 0
    assert not ended.err


def test_score_prints_windows(batchser: Command, recordings: Path) -> None:
    path = recordings / "mono.wav"
    ended = batchser("score", path, "--model", "tiny")
    assert ended.code == 0
    assert not ended.err
    lines = ended.out.splitlines()
    assert lines[0] == str(path)
    assert lines[1].split()[:6] == ["channel", "role", "segment", "start_s", "end_s", "kind"]
    kinds = [line.split()[5] for line in lines[2:7]]
    assert kinds == ["speech", "tone", "silence", "speech", "noise"]
    assert lines[3].split()[-1] == "-"
    assert lines[2].split()[8] in LABELS
    assert not here()


def test_score_prints_json_lines(batchser: Command, recordings: Path) -> None:
    ended = batchser("score", recordings / "mono.wav", recordings / "quiet.flac", "--model", "tiny", "--json")
    assert ended.code == 0
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert [row["call_id"] for row in rows] == ["mono"] * 5 + ["quiet"] * 3
    assert set(rows[0]) == set(pq.ParquetFile(_segments_of(batchser, recordings)).schema_arrow.names)
    assert rows[0]["emotion"] in LABELS
    assert rows[1]["emotion"] is None


def _segments_of(batchser: Command, recordings: Path) -> str:
    batchser("run", recordings, *RUN)
    return "r.segments.parquet"


def test_score_goes_on_after_a_bad_file(batchser: Command, mixed: Path) -> None:
    ended = batchser("score", mixed / "broken.wav", "missing.wav", mixed / "quiet.flac", "--model", "tiny")
    assert ended.code == 1
    first, second = ended.err.splitlines()
    assert first.startswith(f"error: {mixed / 'broken.wav'}: the file starts with text")
    assert second.startswith("error: missing.wav: there is no such file")
    assert ended.out.splitlines()[0] == str(mixed / "quiet.flac")


def test_score_explains_why_nothing_is_scored(batchser: Command, mixed: Path) -> None:
    ended = batchser("score", mixed / "two.wav", "--model", "tiny")
    assert ended.code == 0
    assert "no channel was scored. Roles found: unknown; scored are customer,mixed" in ended.err
    assert "--channel-roles" in ended.err
    ended = batchser("score", mixed / "two.wav", "--model", "tiny", "--channel-roles", "agent,customer", "--json")
    rows = pd.DataFrame(json.loads(line) for line in ended.out.splitlines())
    assert rows.groupby("role")["emotion"].count().to_dict() == {"agent": 0, "customer": 2}
    assert not ended.err
    ended = batchser("score", mixed / "two.wav", "--model", "tiny", "--roles", "boss")
    assert ended.code == 2
    assert "--roles: received 'boss'" in ended.err


def test_models_lists_the_installed(
    batchser: Command, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ended = batchser("models")
    assert ended.code == 0
    about = ended.out[ended.out.index("tiny: ") :].splitlines()
    assert about[0] == f"tiny: {', '.join(LABELS)}"
    assert about[1] == f"  {RATE_HZ} Hz, commercial use allowed; data: generated"
    assert about[2] == f"  {tiny_bundle.folder}"

    rows = {row["name"]: row for row in map(json.loads, batchser("models", "--json").out.splitlines())}
    assert rows["tiny"]["labels"] == list(LABELS)
    assert rows["tiny"]["rate_hz"] == RATE_HZ
    assert rows["tiny"]["sha256"] == tiny_bundle.sha256
    assert rows["tiny"]["folder"] == str(tiny_bundle.folder)

    monkeypatch.setenv("BATCHSER_MODELS", str(tmp_path / "nowhere"))
    assert "tiny" not in batchser("models").out
    monkeypatch.setenv("BATCHSER_MODELS", f"{tmp_path / 'nowhere'}:{Path(str(tiny_bundle.folder)).parent}")
    assert "tiny: " in batchser("models").out

    copied = tmp_path / "others" / tiny_bundle.folder.name
    shutil.copytree(tiny_bundle.folder, copied)
    monkeypatch.setenv("BATCHSER_MODELS", f"{tiny_bundle.folder.parent}:{copied.parent}")
    lines = batchser("models").out.splitlines()
    assert f"  {tiny_bundle.folder}" in lines
    assert f"  {copied} (hidden: {copied.name!r} names one above; give this folder)" in lines
    rows = [row for row in map(json.loads, batchser("models", "--json").out.splitlines()) if row["name"] == "tiny"]
    assert [row["hidden"] for row in rows] == [False, True]


# -------------------------------------------------------------------------------------------- train and evaluate


def test_train_and_evaluate_refuse_before_they_start(batchser: Command) -> None:
    Path("data").mkdir()
    for arguments, words in [
        (("train", "--data", "data", "--out", "no/bundle"), "--out no/bundle: there is no folder"),
        (("train", "--data", "data", "--out", "b", "--recipe", "no-such"), "recipe 'no-such'"),
        (("train", "--data", "data", "--out", "b", "--recipe", "no.toml"), "recipe no.toml: no such file"),
        (("train", "--data", "data", "--out", "b", "--cache", "b/c"), "--cache b/c: lies in b, which this run removes"),
        (("train", "--data", "data", "--out", "b"), "data holds no clip of CREMA-D; expected CREMA-D/ with files like"),
        (("evaluate", "--data", "data", "--model", "no-such"), "Installed: "),
        (("evaluate", "--data", "data", "--model", "tiny"), "error: "),
    ]:
        ended = batchser(*arguments)
        assert ended.code == 2, arguments
        assert words in ended.err
        assert "Traceback" not in ended.err
        assert here() == ["data"]
