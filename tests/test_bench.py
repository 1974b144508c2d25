"""The benchmark runs, its stages are the pipeline's, and its table is whole. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"


@pytest.fixture
def bench_folder(monkeypatch):
    """The benchmark's modules import each other as a script's do: by its folder."""
    monkeypatch.syspath_prepend(str(BENCH))


def test_job_is_measured_from_outside(tiny_bundle, tmp_path):
    report = tmp_path / "bench.json"
    command = [
        sys.executable, str(BENCH / "bench.py"), "--hours", "0.02", "--long-hours", "0", "--stage-calls", "0",
        "--paper-windows", "0", "--model", str(tiny_bundle.folder), "--json", str(report),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "whole job" in done.stdout
    results = json.loads(report.read_text())
    assert results["job"]["audio_s"] == pytest.approx(72)
    assert results["job"]["num_windows"] == 2 * 24
    assert results["job"]["peak_all_mb"] > 50


def test_a_missing_model_is_told(tmp_path):
    command = [sys.executable, str(BENCH / "bench.py"), "--model", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "none" in done.stderr


@pytest.mark.usefixtures("bench_folder")
def test_stages_see_every_window(tiny_bundle, tmp_path):
    from material import make_calls
    from stages import measure_stages

    stages = {
        stage.name: stage for stage in measure_stages(make_calls(tmp_path, 0.01), str(tiny_bundle.folder), tmp_path)
    }
    assert stages["decode"].audio_s == pytest.approx(36)
    for name in ("decode", "windows", "features", "gate", "summaries and tables"):
        assert stages[name].num_windows == 2 * 12
    assert all(stage.seconds > 0 for stage in stages.values())


@pytest.mark.usefixtures("bench_folder")
def test_table_and_ratios():
    from bench import paper_lines, table
    from job import JobResult
    from papers import PapersWay

    job = JobResult(10.0, 6000.0, 20, 4000, 2000, 1000, 1.0, 1.0, 1.0)
    lines = paper_lines(PapersWay(60, 1.0, 9.0, 90.0), job)
    speeds = {line.what: line.x_realtime for line in lines}
    assert speeds["papers' way"] == pytest.approx(30)  # 3 s in 100 ms
    assert speeds["papers' way on scored windows only"] == pytest.approx(60)
    assert speeds["  whole job ÷ papers' way, in all"] == pytest.approx(20)
    assert (
        len(
            {
                line.index(mark) + len(mark)
                for line, mark in zip(table(lines).splitlines()[1:4], ("1.000", "9.000", "90.000"), strict=True)
            }
        )
        == 1
    )
