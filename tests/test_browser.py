"""Report and dashboard in a real browser, headless: charts drawn, sound played, labels given, nothing on its console.

Needs Chromium or Chrome on this machine (``apt-get install chromium``), or its path in ``BATCHSER_TEST_BROWSER``; with
``BATCHSER_TEST_SCREENSHOTS=DIR`` a picture of every page is kept there. Accessibility is checked by axe-core.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from click.testing import CliRunner
from conftest import Bundle
from generated_results import write_results
from pages import HOSTILE
from playwright.sync_api import Browser, Page, expect, sync_playwright
from scored_calls import score_calls

from batchser.cli import cli
from batchser.training.corpora.manifest import read_manifest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = os.environ.get("BATCHSER_TEST_BROWSER") or next(filter(None, map(shutil.which, _NAMES)), None)
_PATIENCE_MS = 180_000  # for machines with other things to do: no time is asserted here
PICTURES = os.environ.get("BATCHSER_TEST_SCREENSHOTS")

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=options)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Page]]:
    """Open a page; whatever it says on its console, fails to fetch or asks of a network is a failure in the end."""
    faults: list[str] = []
    contexts = []

    def opened(address: str, width: int = 1200, height: int = 900) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height})
        context.set_default_timeout(_PATIENCE_MS)
        context.set_default_navigation_timeout(_PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("response", lambda answer: faults.append(answer.url) if answer.status >= 400 else None)
        page.on("request", lambda asked: None if is_local(asked.url) else faults.append(asked.url))
        page.goto(address)
        return page

    yield opened
    for number, context in enumerate(contexts):
        if PICTURES:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            name = re.sub(r"\W+", "-", request.node.name)
            context.pages[0].screenshot(path=f"{PICTURES}/{name}-{number}.png", full_page=True)
        context.close()
    assert faults == []


def is_local(address: str) -> bool:
    return re.match(r"(file://|data:|blob:|http://127\.0\.0\.1:\d+/)", address) is not None


def assert_accessible(page: Page) -> None:
    """Axe finds nothing serious: no violation at all, in fact."""
    found = Axe().run(page).response["violations"]
    assert [(one["impact"], one["id"], one["nodes"][0]["html"][:200]) for one in found] == []


def heard(page: Page) -> tuple[float, float, object]:
    """Wait until the player plays, or says that it cannot; return its seconds, its position and its fault."""
    until = time.monotonic() + _PATIENCE_MS / 1000
    while True:  # a function that the page waits for itself is what its security policy forbids
        seconds, position, fault = page.locator("#player").evaluate("e => [e.duration, e.currentTime, e.error]")
        if position > 0 or fault is not None or time.monotonic() > until:
            return seconds, position, fault
        page.wait_for_timeout(50)


def draw_all(page: Page) -> int:
    """Scroll through a page until every chart is drawn; return how many."""
    charts = page.locator(".chart[data-figure]")
    for number in range(charts.count()):
        charts.nth(number).scroll_into_view_if_needed()
        charts.nth(number).locator("svg.main-svg").first.wait_for()
    return charts.count()


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Path:
    names = ("one", "two", HOSTILE[0], HOSTILE[1], HOSTILE[2])
    return score_calls(tmp_path_factory.mktemp("scored"), tiny_bundle.folder, out="grown", names=names)


@pytest.fixture(scope="module")
def dashboard(scored: Path, tiny_bundle: Bundle) -> Iterator[str]:
    command = [
        Path(sys.executable).with_name("batchser"), "dashboard", scored, "--listen", "127.0.0.1:0", "--root",
        scored.parent, "--labels", scored.parent / "labels.csv", "--model", tiny_bundle.folder,
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield re.match(r"(http://127\.0\.0\.1:\d+) ?/", process.stderr.readline())[1]
        finally:
            process.terminate()


# ------------------------------------------------------------------------------------------------- report


def report(out: Path) -> str:
    file = out.parent / "report.html"
    done = CliRunner().invoke(cli, ["report", str(out), "--html", str(file)], catch_exceptions=False)
    assert done.exit_code == 0
    return file.as_uri()


def test_the_report(visit: Callable[..., Page], tmp_path: Path) -> None:
    address = report(write_results(tmp_path / "grown", 300, windows=12, nights=3, faults=5, names=HOSTILE))
    page = visit(address)
    assert draw_all(page) > 20
    table = page.locator("#calls-table")
    assert table.locator("tbody tr").count() == 50
    assert table.get_by_role("status").text_content() == "1 to 50 of 300 rows"
    table.get_by_role("button", name="Next").click()
    assert table.get_by_role("status").text_content() == "51 to 100 of 300 rows"
    table.get_by_role("button", name="negativity").click()
    assert page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('#calls-table .scroll'))")
    shown = [float(text) for text in table.locator("tbody tr td:nth-child(9)").all_text_contents()]
    assert shown == sorted(shown, reverse=True)
    assert table.locator("th[aria-sort=descending]").text_content() == "negativity"
    page.get_by_label("Look for").fill("<script>")
    page.wait_for_selector("text=1 to 1 of 1 rows")
    assert HOSTILE[0] in table.locator("tbody").text_content()
    page.get_by_label("Look for").fill("")
    page.get_by_label("only those that need a person").check()
    assert " of 300 " not in table.get_by_role("status").text_content()
    assert_accessible(page)


def test_hostile_names_in_charts_are_texts(visit: Callable[..., Page], tmp_path: Path) -> None:
    page = visit(report(write_results(tmp_path / "r.parquet", 40, names=HOSTILE * 4)))
    draw_all(page)
    labels = page.locator("#main svg .ytick text").all_text_contents()
    assert "<script>alert(1)</script>" in labels
    assert page.locator("svg a").count() == 0


def test_the_report_on_a_phone_and_on_paper(visit: Callable[..., Page], tmp_path: Path) -> None:
    address = report(write_results(tmp_path / "r.parquet", 100, nights=2))
    page = visit(address, width=375, height=800)
    draw_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert_accessible(page)
    paper = visit(address)
    paper.emulate_media(media="print")
    assert len(paper.pdf(format="A4")) > 50_000
    assert not paper.locator("#calls-search").is_visible()


@pytest.mark.parametrize("options", [{"num_calls": 0}, {"num_calls": 5, "faults": 5}, {"num_calls": 1, "windows": 1}])
def test_small_reports(visit: Callable[..., Page], tmp_path: Path, options: dict) -> None:
    page = visit(report(write_results(tmp_path / "r.parquet", **options)))
    draw_all(page)
    page.wait_for_selector("#calls-table [role=status]")
    assert_accessible(page)


# ------------------------------------------------------------------------------------------------- dashboard


def test_filters(visit: Callable[..., Page], dashboard: str) -> None:
    page = visit(f"{dashboard}/")
    assert draw_all(page) > 0
    assert_accessible(page)
    expect(page.locator("#main")).to_contain_text("6 rows", timeout=_PATIENCE_MS)
    page.get_by_label("queue").select_option("two")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#main")).to_contain_text("1 rows", timeout=_PATIENCE_MS)
    page.goto(f"{dashboard}/")
    page.get_by_label("condition").fill("status == 'unreadable'")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#main")).to_contain_text("1 rows", timeout=_PATIENCE_MS)
    page.get_by_role("link", name="broken").click()
    assert "unreadable:" in page.get_by_role("alert").text_content()
    assert_accessible(page)


def test_a_call_is_seen_heard_and_labelled(visit: Callable[..., Page], dashboard: str, scored: Path) -> None:
    page = visit(f"{dashboard}/call?call_id=two")
    page.wait_for_selector("#recording-figure[data-drawn=yes]")
    assert page.locator("#recording-figure .heatmaplayer image").count() == 1
    assert page.locator("#recording-figure .barlayer .point").count() == 5
    assert_accessible(page)
    page.locator("#recording-figure").evaluate("e => e.scrollIntoView({block: 'start'})")  # the player is below
    bar = page.locator("#recording-figure .barlayer .point").first.bounding_box()
    middle = (bar["x"] + bar["width"] / 2, bar["y"] + bar["height"] / 2)
    page.mouse.move(*middle)
    page.wait_for_selector("#recording-figure .hoverlayer .hovertext")
    assert re.search(r"(angry|sad|happy) 0\.\d\d", page.text_content("#recording-figure .hoverlayer"))
    page.mouse.click(*middle)
    page.wait_for_selector("text=the model says")
    page.wait_for_selector("#label-form:not([hidden])")
    seconds, position, failed = heard(page)
    assert seconds == pytest.approx(4, abs=0.01)  # a window and half a second before and after
    assert position > 0
    assert failed is None
    assert page.get_by_label("It really is").input_value() == ""  # the listener's word, not the model's
    page.get_by_label("It really is").select_option("surprised")
    page.get_by_label("you are").fill("ann")
    page.get_by_label("note").fill("=cmd")
    page.get_by_role("button", name="Save the label").click()
    page.wait_for_selector("text=Saved. Labels by now: 1.")
    assert_accessible(page)
    (clip,), faults = read_manifest(scored.parent / "labels.csv")
    assert (clip.emotion, clip.path.name, clip.channel, faults) == ("surprised", "1.wav", 1, [])
    page.goto(f"{dashboard}/labels")
    assert "surprised" in page.text_content("tbody")
    assert_accessible(page)


def test_the_player_is_in_sight_wherever_a_moment_is_chosen(visit: Callable[..., Page], dashboard: str) -> None:
    for width in (375, 1200):
        page = visit(f"{dashboard}/call?call_id=two", width=width)
        page.wait_for_selector("#recording-figure[data-drawn=yes]")
        page.locator(".hear").last.click()
        page.wait_for_selector("text=the model says")
        box = page.get_by_role("button", name="Save the label").bounding_box()
        assert 0 <= box["y"] <= 900 - box["height"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_calls_are_seen_and_heard(visit: Callable[..., Page], dashboard: str) -> None:
    page = visit(f"{dashboard}/")
    page.get_by_role("link", name=HOSTILE[1], exact=True).first.click()
    page.wait_for_selector("#recording-figure[data-drawn=yes]")
    assert page.text_content("h1") == HOSTILE[1]
    page.locator(".hear").first.click()
    page.wait_for_selector("text=the model says")
    assert heard(page)[2] is None


def test_moments_are_heard_by_keyboard(visit: Callable[..., Page], dashboard: str) -> None:
    page = visit(f"{dashboard}/moments")
    assert_accessible(page)
    page.locator(".hear").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("text=the model says")
    assert heard(page)[1] > 0


def test_an_upload_is_scored_and_seen(visit: Callable[..., Page], dashboard: str, scored: Path) -> None:
    page = visit(f"{dashboard}/upload")
    assert_accessible(page)
    page.get_by_label("recording").set_input_files(scored.parent / "audio" / "0.wav")
    page.get_by_label("who speaks").select_option("agent,customer")
    page.get_by_role("button", name="Score it").click()
    page.wait_for_selector("#recording-figure[data-drawn=yes]")
    assert "scored in" in page.text_content("header")
    assert page.locator("#recording-figure .barlayer .point").count() == 5
    draw_all(page)
    page.locator(".hear").first.click()
    page.wait_for_selector("text=the model says")
    assert heard(page)[1] > 0
    assert page.locator("#label-form").count() == 0
    assert_accessible(page)
