"""What the README promises works: its notebook runs on the sample calls, its options exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from generated_results import write_results

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


@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb"])
def test_the_examples_run_and_agree(library, tmp_path, monkeypatch):
    out = write_results(tmp_path / "results.parquet", 60, nights=3, faults=2)
    calls = pd.read_parquet(out)
    crm = pd.DataFrame(
        {"call_id": calls["call_id"], "customer_id": range(60), "churned": [k % 3 == 0 for k in range(60)]}
    )
    crm.to_csv(tmp_path / "crm.csv", index=False)
    code = re.search(rf"<!-- example {library} -->\n```python\n(.*?)```", README, re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    found = {name: as_pandas(names[name]) for name in ("worst", "by_group", "nights", "churn")}
    ok = calls[calls["status"] == "ok"]
    assert found["worst"]["call_id"].tolist() == ok.nlargest(10, "negativity")["call_id"].tolist()
    assert sorted(found["by_group"]["negativity"]) == pytest.approx(
        sorted(ok.groupby("agent_group")["negativity"].mean())
    )
    assert found["nights"].shape[0] == 3
    expected = ok.merge(crm).groupby("churned")["negativity"].mean()
    assert sorted(found["churn"].iloc[:, -1]) == pytest.approx(sorted(expected), abs=1e-5)


def as_pandas(table):
    """A result of any of the libraries as a frame with plain columns."""
    if isinstance(table, pd.Series):
        return table.reset_index()
    if isinstance(table, pd.DataFrame):
        return table.reset_index() if table.index.name else table
    return pd.DataFrame(table.to_dicts()) if hasattr(table, "to_dicts") else table.df()


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


@pytest.mark.parametrize("command", ["run", "report", "clips", "dashboard"])
def test_every_option_is_in_the_readme(command):
    mark = "`" if command == "run" else ""  # run has a table of them
    for parameter in cli.commands[command].params:
        for option in parameter.opts:
            if option.startswith("--") and option != "--help":
                assert f"{mark}{option}" in README
