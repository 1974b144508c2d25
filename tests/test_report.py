"""The report: one page that needs no network, says what the tables say, and is inert whatever names are in them."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from click.testing import CliRunner
from conftest import Bundle
from generated_results import LABELS, NEGATIVE, write_results
from pages import HOSTILE, Page, assert_inert

from batchser.cli import cli
from batchser.pages import charts
from batchser.pages.report import honest_scores
from batchser.results import night, open_results
from batchser.settings import fingerprint_of

ROOT = Path(__file__).parent.parent


def report_of(out: Path, *options: str) -> str:
    file = out.parent / "report.html"
    done = CliRunner().invoke(cli, ["report", str(out), "--html", str(file), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return file.read_text(encoding="utf-8")


def table_of(page: Page) -> dict[str, list]:
    return json.loads(zlib.decompress(base64.b64decode(page.scripts["calls-data"])))


@pytest.mark.parametrize("name", ["r.parquet", "grown"])
def test_it_says_what_the_tables_say(tmp_path: Path, name: str) -> None:
    write_results(tmp_path / name, 300, nights=3, faults=4)
    page = Page(report_of(tmp_path / name))
    calls = night.read_calls(open_results(tmp_path / name), night.ZoneInfo("UTC"))
    numbers = night.summed_up(calls)
    words = page.words
    assert "Calls of 2026-11-02 to 2026-11-04" in words
    assert "calls 300 " in words
    assert "could not be read 4 " in words
    assert f"need a person {numbers.num_attention} " in words
    assert "the file is empty (0 bytes), expected a recording" in words
    table = table_of(page)
    assert table["call"] == calls["call_id"].tolist()
    assert table["needs a person"] == calls[night.REASONS].tolist()
    assert table["status"][-1] == "unreadable"
    figures = page.figures()
    timelines = [name for name in figures if name.startswith("timeline")]
    assert len(timelines) == min(20, numbers.num_attention)
    worst = night.need_a_person(calls)["call_id"].head(20).tolist()
    assert re.findall(r"Emotions of (\S+) over time;", str(page.elements)) == worst
    for chart in ("All calls", "By queue", "By agent_group", "By hour", "Night by night", "Talk share", "Overtalk"):
        assert chart in words


def test_plotly_takes_every_figure(tmp_path: Path) -> None:
    write_results(tmp_path / "r.parquet", 100, nights=2)
    for figure in Page(report_of(tmp_path / "r.parquet")).figures().values():
        go.Figure(figure)  # raises for a key or value that plotly.js does not know


def test_figures_add_up(tmp_path: Path) -> None:
    write_results(tmp_path / "r.parquet", 100)
    figures = Page(report_of(tmp_path / "r.parquet")).figures()
    bars = figures["chart-2"]  # by queue
    assert [trace["name"] for trace in bars["data"]] == [*LABELS, "unsure"]
    for number in range(3):
        assert sum(trace["x"][number] for trace in bars["data"]) == pytest.approx(100, abs=0.5)
    windows = sum(len(trace["x"]) for trace in figures["timeline-1"]["data"])
    assert windows == 6


def test_it_asks_no_network_and_runs_its_own_scripts_alone(tmp_path: Path) -> None:
    write_results(tmp_path / "r.parquet", 20)
    text = report_of(tmp_path / "r.parquet")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1))
    assert policy.startswith("default-src 'none';")
    assert "unsafe-eval" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 3
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    page = Page(text)
    assert not [
        attrs for _, attrs in page.elements if re.match("(https?:)?//", attrs.get("src") or attrs.get("href") or "")
    ]


def test_hostile_names_are_inert(tmp_path: Path) -> None:
    write_results(tmp_path / "r.parquet", len(HOSTILE) * 3, names=HOSTILE * 2)
    text = report_of(tmp_path / "r.parquet")
    page = Page(text)
    assert_inert(page)
    assert set(HOSTILE) <= set(table_of(page)["call"])
    for figure in page.figures().values():
        assert "<script" not in json.dumps([trace.get("y") for trace in figure["data"]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_calls": 0}, "There are no calls of these days in the results."),
        ({"num_calls": 5, "faults": 5}, "could not be read 5"),
        ({"num_calls": 1, "windows": 1}, "calls 1"),
    ],
    ids=["empty", "only failures", "one call of 3 s"],
)
@pytest.mark.parametrize("name", ["r.parquet", "grown"])
def test_small_results(tmp_path: Path, name: str, options: dict, words: str) -> None:
    write_results(tmp_path / name, **options)
    page = Page(report_of(tmp_path / name))
    assert words in page.words


def test_days_and_zone(tmp_path: Path) -> None:
    write_results(tmp_path / "grown", 30, nights=3)
    page = Page(report_of(tmp_path / "grown", "--from", "2026-11-03", "--to", "2026-11-03"))
    assert table_of(page)["call"] == [f"call-{k:06}" for k in range(10, 20)]
    page = Page(report_of(tmp_path / "grown", "--timezone", "Europe/Berlin"))
    assert table_of(page)["begun"][0] == "2026-11-02 08:00"


def test_a_card_of_another_protocol_says_so(tmp_path: Path, tiny_bundle: Bundle) -> None:
    folder = shutil.copytree(tiny_bundle.folder, tmp_path / "models" / "tiny")
    body = json.loads((folder / "bundle.json").read_text())
    body["scores"] = {"protocol": "random", "clips": {"uar": 0.9, "intervals": {"uar": None}}}
    calls = pd.DataFrame({"model": ["tiny", "other"], "model_sha256": [resealed(folder, body), "b" * 64]})
    random, unknown = sorted(honest_scores(calls, (tmp_path / "models",)), key=len, reverse=True)
    assert "it names 90 % right" in random
    assert "the model has heard the speakers it is tested on" in random
    assert "nan" not in random
    assert "its card is not installed here" in unknown


def resealed(folder: Path, body: dict) -> str:
    """Write a bundle's description with its hash anew, as ``write_bundle`` does; return the hash."""
    del body["sha256"]
    body["sha256"] = fingerprint_of(body)
    (folder / "bundle.json").write_text(json.dumps(body))
    return body["sha256"]


def test_a_very_long_call_is_drawn_in_longer_bars(tmp_path: Path) -> None:
    results = open_results(write_results(tmp_path / "r.parquet", 1, windows=4000))
    windows = results.read_windows()
    customer = windows[windows["emotion"].notna()]
    bursts = customer[(customer["start_s"] < 60) | (customer["start_s"] > 11_000)]
    assert charts.bar_s(bursts) == 21
    figure = charts.timeline(bursts, LABELS, NEGATIVE)
    ends = [x + w / 2 for trace in figure["data"] for x, w in zip(trace["x"], trace["width"], strict=True)]
    assert not [end for end in ends if 63 < end < 11_000]  # no bar lies across the gap
    pale = [shade < 1 for trace in figure["data"] for shade in trace["marker"]["opacity"]]
    assert np.mean(pale) == pytest.approx(bursts["abstained"].mean(), abs=0.25)
    assert charts.bar_s(customer[customer["start_s"] < 1800]) == 3


def test_eight_labels_of_ones_own_look_different() -> None:
    labels = tuple(f"mood-{k}" for k in range(8))
    assert len({charts.look_of(label, labels) for label in labels}) == 8


def test_the_card_says_the_score(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli,
        ["run", str(ROOT / "sample_data/manifest.csv"), "--out", str(tmp_path / "r.parquet"), "--workers", "0"],
    )
    assert done.exit_code == 1, done.output
    text = Page(report_of(tmp_path / "r.parquet")).words
    bundle = json.loads((ROOT / "models/telephone-6/bundle.json").read_text())
    uar = bundle["scores"]["clips"]["uar"]
    assert (
        f"of test clips (CREMA-D, on a mu-law line) it names {uar * 100:.0f} % (95 % interval 62 to 66) right" in text
    )
    assert "Protocol speaker-folds: every clip is scored by a model that never heard its speaker." in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.parquet", "--html", "r.html"], "there is no such file"),
        (["missing.parquet", "--html", "no/such/r.html"], "--html no/such/r.html: there is no folder"),
        (
            ["missing.parquet", "--html", "r.html", "--from", "2026-11-03", "--to", "2026-11-02"],
            "the earlier day first",
        ),
        (["missing.parquet", "--html", "r.html", "--timezone", "Mars"], "--timezone Mars: there is no such zone"),
    ],
)
def test_wrong_usage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["report", *arguments])
    assert done.exit_code != 0
    assert words in str(done.exception) + done.output
