"""The benchmark runs, its stages are the pipeline's, and its table is whole. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import LABELS

from batchser import engine, networks
from batchser.bundle import read_weights, weights_of

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
def test_roofline_times_every_product_of_the_network(tiny_bundle):
    from roofline import _products, measure_roofline

    features = tiny_bundle.features
    arrays = weights_of(read_weights(tiny_bundle), "emotion")
    shape = (features.num_steps, features.num_features)
    graph = engine.describe(tiny_bundle.network, arrays, "emotion", shape, len(LABELS))
    counted = sum(2 * rows * inner * columns * steps for rows, inner, columns, steps in _products(graph))
    network = networks.build(tiny_bundle.network.name, *shape, len(LABELS), tiny_bundle.network.options)
    assert counted / engine.SLICE_WINDOWS == pytest.approx(
        networks.flops(network), rel=0.15
    )  # but for what is added up
    found = measure_roofline(tiny_bundle)
    assert found.scoring_ms > 0
    assert found.features_ms > 0


@pytest.mark.usefixtures("bench_folder")
def test_a_profile_has_a_row_for_each_material(tiny_bundle, tmp_path):
    from profiles import make_material, page
    from stages import measure_stages

    measured = []
    for container, codec in (("WAV", "ULAW"), ("MP3", "MPEG_LAYER_III"), ("OGG", "OPUS")):
        (tmp_path / codec).mkdir()
        calls = make_material(tmp_path / codec, 2, 4.0, container, codec)
        assert [soundfile.info(call).subtype for call in calls] == [codec] * 2
        measured.append((codec, measure_stages(calls, str(tiny_bundle.folder), tmp_path)))
    lines = page(measured).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| ULAW", "| MPEG_LAYER_III", "| OPUS"]
    assert {line.count("|") for line in lines} == {10}


@pytest.mark.usefixtures("bench_folder")
def test_scaling_has_a_line_for_each_case(tiny_bundle):
    from scaling import Case, measure

    head, _, first, second = measure([Case("few", 3, 2.0, 1), Case("long", 1, 20.0)], str(tiny_bundle.folder))
    assert first.startswith("| few | 3 | 0.0 | ")
    assert second.startswith("| long | 1 | 0.0 | ")
    assert {line.count("|") for line in (head, first, second)} == {10}


@pytest.mark.usefixtures("bench_folder")
def test_a_peer_that_is_not_installed_is_left_out(tmp_path):
    from bench import measure_peer

    np.save(tmp_path / "windows.npy", np.zeros((3, 24000), np.float32))
    (tmp_path / "opensmile.py").write_text("raise ImportError('no openSMILE here')")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    assert measure_peer(str(python), "opensmile", tmp_path / "windows.npy") == "not installed: no openSMILE here"


@pytest.mark.usefixtures("bench_folder")
def test_ratios_that_fell_are_told():
    from bench import worse_ratios

    stored = {"  job ÷ papers": 100.0, "  job ÷ peer": 10.0, "features: arithmetic ÷ time": 0.5}
    assert (
        worse_ratios({"  job ÷ papers": 81.0, "  job ÷ peer": 50.0, "features: arithmetic ÷ time": 0.41}, stored) == []
    )
    found = {"  job ÷ papers": 79.0, "features: arithmetic ÷ time": 0.5}
    assert worse_ratios(found, stored) == ["job ÷ papers: 79, stored 100", "job ÷ peer: 0, stored 10"]


@pytest.mark.usefixtures("bench_folder")
def test_ratios_are_compared_with_those_of_the_same_setting(tmp_path, monkeypatch):
    import bench
    import click

    setting = {"hours": 10.0, "model": "telephone-6", "cores": 2}
    monkeypatch.setattr(bench, "_RATIOS", tmp_path / "ratios.json")
    with pytest.raises(click.UsageError, match="keep some ratios with --store"):
        bench.stored_ratios(setting)
    (tmp_path / "ratios.json").write_text(json.dumps({"setting": setting, "ratios": {"job ÷ papers": 100.0}}))
    assert bench.stored_ratios(setting) == {"job ÷ papers": 100.0}
    with pytest.raises(click.UsageError, match=r"'hours': 10.0.* are kept, this is .*'hours': 40"):
        bench.stored_ratios(setting | {"hours": 40})


@pytest.mark.usefixtures("bench_folder")
def test_table_and_ratios():
    from bench import paper_lines, table
    from job import JobResult
    from papers import PapersWay

    job = JobResult(10.0, 6000.0, 20, 4000, 2000, 1000, 1.0, 1.0, 1.0)
    lines = paper_lines(PapersWay(60, 1.0, 9.0, 50.0, 40.0), job)
    speeds = {line.what: line.x_realtime for line in lines}
    assert speeds["papers' way"] == pytest.approx(30)  # 3 s in 100 ms
    assert speeds["papers' way on scored windows only"] == pytest.approx(60)
    assert speeds["  whole job ÷ papers' way, in all"] == pytest.approx(20)
    assert (
        len(
            {
                line.index(mark) + len(mark)
                for line, mark in zip(table(lines).splitlines()[1:4], ("1.000", "9.000", "50.000"), strict=True)
            }
        )
        == 1
    )
