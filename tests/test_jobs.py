"""jobs/: the script is run for real; units, CronJob and rules are checked, by the tools that read them where there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from datetime import date, timedelta
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import call, write

from batchser import cli
from batchser.bundle import Bundle
from batchser.metrics import write_metrics
from batchser.records import STATUSES
from batchser.runner import Report

JOBS = Path(__file__).parents[1] / "jobs"
DAY = str(date.today() - timedelta(days=1))


@pytest.fixture
def centre(tmp_path: Path, tiny_bundle: Bundle) -> dict[str, str]:
    """The environment of a night: a folder with yesterday's calls, and where things go."""
    folder = tmp_path / "recordings" / DAY
    folder.mkdir(parents=True)
    write(folder / "a.wav", call(1, seconds=1.0), call(2, seconds=1.0))
    write(folder / "b.wav", call(3, seconds=1.0), call(4, seconds=1.0))
    config = (
        (JOBS / "night.toml").read_text(encoding="utf-8").replace('"telephone-6"', json.dumps(str(tiny_bundle.folder)))
    )
    (tmp_path / "night.toml").write_text(config, encoding="utf-8")
    # Whoever begins before midnight and ends behind it still means the same day.
    today = tmp_path / "bin" / "date"
    today.parent.mkdir()
    today.write_text(f'#!/bin/sh\n[ "$*" = "-d yesterday +%F" ] && echo {DAY} || exec {shutil.which("date")} "$@"\n')
    today.chmod(0o755)
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(today.parent), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "BATCHSER_RECORDINGS": str(tmp_path / "recordings"),
        "BATCHSER_OUT": str(tmp_path / "emotions"),
        "BATCHSER_LOGS": str(tmp_path / "logs"),
        "BATCHSER_CONFIG": str(tmp_path / "night.toml"),
    }


def nightly(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(JOBS / "nightly.sh"), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)


def test_nightly_scores_yesterday_and_keeps_log_and_exit_code(centre: dict[str, str], tmp_path: Path) -> None:
    ended = nightly(centre, "--workers", "0")
    log = (tmp_path / f"logs/{DAY}.log").read_text(encoding="utf-8")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", ""), log
    calls = pd.read_parquet(tmp_path / "emotions/calls")
    assert sorted(calls["call_id"]) == ["a", "b"]
    assert set(calls["role"]) == {"customer"}
    assert log.endswith("exit code 0\n")
    assert [json.loads(line)["event"] for line in log.splitlines() if '"event"' in line][-1] == "finished"
    assert json.loads((tmp_path / f"logs/{DAY}.json").read_text())["recordings"] == 2
    assert 'batchser_recordings{status="ok"} 2' in (tmp_path / "logs/batchser.prom").read_text()

    (tmp_path / "recordings" / DAY / "c.wav").write_bytes(b"RIFF")
    assert nightly(centre, "--workers", "0").returncode == 1
    assert json.loads((tmp_path / f"logs/{DAY}.json").read_text())["recordings_reused"] == 2
    assert nightly(centre, "--roles", "boss").returncode == 2


def test_nightly_leaves_a_report_where_it_is_asked_to(centre: dict[str, str], tmp_path: Path) -> None:
    page = tmp_path / "calls.html"
    assert nightly(centre | {"BATCHSER_REPORT": str(page)}, "--workers", "0").returncode == 0
    assert "Calls that need a person first" in page.read_text(encoding="utf-8")
    nowhere = centre | {"BATCHSER_REPORT": str(tmp_path / "no" / "such.html")}
    assert nightly(nowhere, "--workers", "0").returncode == 0
    log = (tmp_path / f"logs/{DAY}.log").read_text(encoding="utf-8")
    assert "there is no folder" in log
    assert log.endswith("no report was written\nexit code 0\n")


def test_one_night_at_a_time(centre: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with subprocess.Popen(["flock", str(tmp_path / "logs/nightly.lock"), "cat"], stdin=subprocess.PIPE) as holder:
        taken = ["flock", "--nonblock", str(tmp_path / "logs/nightly.lock"), "true"]
        while subprocess.run(taken, check=False).returncode == 0:
            pass
        ended = nightly(centre)
        holder.communicate()
    assert ended.returncode == 75
    assert "the night before is still at work" in ended.stderr
    assert not (tmp_path / "emotions").exists()


def test_nightly_wants_to_know_where(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BATCHSER_")}
    ended = nightly(environment)
    assert ended.returncode != 0
    assert "BATCHSER_RECORDINGS: state where the recordings lie" in ended.stderr


def test_every_key_of_the_night_is_an_option() -> None:
    values = tomllib.loads((JOBS / "night.toml").read_text(encoding="utf-8"))
    options = {option.name for option in cli.cli.commands["run"].params}
    assert set(values) - {"limits", "summary"} <= options


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units() -> None:
    units = [str(JOBS / "batchser.service"), str(JOBS / "batchser.timer")]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "batchser" in line and "is not executable" not in line]
    assert not ours


def test_the_cron_job_has_what_kubernetes_asks_for() -> None:
    job = yaml.safe_load((JOBS / "cronjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert len(job["spec"]["schedule"].split()) == 5
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    spec = job["spec"]["jobTemplate"]["spec"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # which a podFailurePolicy needs
    (container,) = pod["containers"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_the_cron_job_s_command_passes_on_all_but_1(tmp_path: Path, code: int) -> None:
    job = yaml.safe_load((JOBS / "cronjob.yaml").read_text(encoding="utf-8"))
    command = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
    script = command[2].replace("/opt/batchser/jobs/nightly.sh --workers 4", f"(exit {code})")
    assert "nightly.sh" not in script
    assert subprocess.run([*command[:2], script], check=False).returncode == (0 if code == 1 else code)


def test_alerts_ask_for_metrics_that_there_are(tmp_path: Path) -> None:
    report = Report("r", 0, "", 1.0, 1, 0, {"ok": 1}, 3.0, 1, 3.0, "m", "o", "s")
    write_metrics(tmp_path / "m.prom", 0, report, {"decode": 1.0})
    written = (tmp_path / "m.prom").read_text(encoding="utf-8")
    rules = yaml.safe_load((JOBS / "alerts.yaml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    assert len(rules) == 2
    for rule in rules:
        names = {
            word
            for word in rule["expr"].replace("(", " ").replace("{", " ").replace(")", " ").split()
            if "batchser_" in word
        }
        assert names
        assert all(f"\n# TYPE {name} gauge\n" in written for name in names)
    asked = rules[1]["expr"].partition('status=~"')[2].partition('"')[0].split("|")
    assert set(asked) <= set(STATUSES)
