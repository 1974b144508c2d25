"""What the README promises works: its notebook runs on the sample calls, its options exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from batchser.cli import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("night")
    batchser = Path(sys.executable).with_name("batchser")
    command = [batchser, "run", ROOT / "sample_data/manifest.csv", "--out", "results.parquet", "--workers", "0"]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 1, finished.stderr  # one sample is broken on purpose
    assert "Traceback" not in finished.stderr
    return folder


def test_the_notebook_of_five_lines_runs_on_the_sample_calls(results, monkeypatch):
    code = re.search(r"<!-- notebook -->\n```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len(code.splitlines()) == 5
    monkeypatch.chdir(results)
    names = {}
    exec(code, names)
    assert names["worst"]["negativity"].dropna().is_monotonic_decreasing
    assert set(names["by_queue"].index) == {"billing", "sales", "support"}
    assert names["trend"].to_numpy().sum() == 3


def test_the_sample_calls_are_gated_and_scored(results):
    calls = pd.read_parquet(results / "results.parquet").set_index("call_id")
    segments = pd.read_parquet(results / "results.segments.parquet")
    assert calls["status"].to_dict() == {
        "billing-0001": "ok", "support-0002": "ok", "sales-0003": "ok", "support-0004": "unreadable",
    }  # fmt: skip
    customer = segments[(segments["call_id"] == "billing-0001") & (segments["channel"] == 1)]
    assert {"speech", "music", "tone"} <= set(customer["kind"])
    assert segments.loc[segments["role"] == "agent", "emotion"].isna().all()


def test_the_table_of_published_systems_is_its_files(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "bench"))
    import published

    shown = re.search(r"<!-- published -->\n(.*?)\n<!-- /published -->", README, re.DOTALL).group(1)
    assert shown == published.table()
    stale = [
        row.name
        for row in published.ROWS
        if row.file.is_file() and json.loads(row.file.read_text())["recipe_sha256"] != row.sha256()
    ]
    assert not stale, "their recipes have changed since: fill them again with make papers"


def test_every_option_of_run_is_in_the_readme():
    for parameter in cli.commands["run"].params:
        for option in parameter.opts:
            if option.startswith("--") and option != "--help":
                assert f"`{option}" in README
