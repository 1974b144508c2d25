"""A wheel carries all that the job needs: installed alone, it runs from an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_default_model_and_the_recipes(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"batchser/models/telephone-6/{name}" for name in ("bundle.json", "weights.npz", "README.md")} <= names
    assert "batchser/training/recipes/telephone-6.toml" in names
    assert not [name for name in names if name.startswith(("tests/", "sample_data/"))]


def test_the_installed_wheel_runs_from_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run(install, check=True, capture_output=True)
    recording = ROOT / "sample_data/calls/2026-11-20/support-0002.wav"
    code = (
        "import batchser, sys; from batchser.cli import main; "
        f"assert batchser.__file__.startswith({str(site)!r}), batchser.__file__; main(sys.argv[1:])"
    )
    # The dependencies come from this environment; the package itself must come from the wheel alone.
    finished = subprocess.run(
        [sys.executable, "-c", code, "run", recording, "--channel-roles", "customer,agent", "--out", "r.parquet",
         "--workers", "0"],
        cwd=empty, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    calls = pd.read_parquet(empty / "r.parquet")
    assert calls["status"].tolist() == ["ok"]
    assert calls["model"].tolist() == ["telephone-6"]
