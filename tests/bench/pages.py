"""How long people wait: the report, the dashboard's pages and an upload, on 100,000 calls with 10 million windows.

    .venv/bin/python tests/bench/pages.py            # two minutes; needs Chromium on this machine for what it shows

Results are generated, as one file and as a dataset of forty nights; the recording is a composed call of 60 seconds.
*first* is the first page that a dashboard shows, *then* the same again. Uploads count from the click to the picture.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from generated_results import write_results  # noqa: E402
from material import write_calls  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402
from test_browser import BROWSER  # noqa: E402

BATCHSER = Path(sys.executable).with_name("batchser")
CALLS, WINDOWS, NIGHTS = 100_000, 50, 40


@contextmanager
def dashboard(out: Path, root: Path) -> Iterator[str]:
    """Serve results and give their address."""
    command = [BATCHSER, "dashboard", out, "--root", root, "--listen", "127.0.0.1:0", "--labels", root / "labels.csv"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        yield re.match(r"(http://127\.0\.0\.1:\d+)/", line)[1]
        process.terminate()


def shown_s(page: Page, address: str, chart: str) -> float:
    """Seconds until a page's first chart is drawn."""
    started = time.perf_counter()
    page.goto(address)
    page.wait_for_selector(chart)
    return time.perf_counter() - started


def uploaded_s(page: Page, address: str, recording: Path) -> float:
    """Seconds from the click until the recording's picture is drawn."""
    page.goto(f"{address}/upload")
    page.set_input_files("input[type=file]", recording)
    page.select_option("select", "agent,customer")
    started = time.perf_counter()
    page.click("form button")
    page.wait_for_selector("#recording-figure[data-drawn=yes]")
    return time.perf_counter() - started


def measure(folder: Path, page: Page) -> Iterator[str]:
    """Give the lines of a Markdown table."""
    (folder / "audio").mkdir()
    write_calls(folder / "audio", 2, 60.0)
    recording = next((folder / "audio").rglob("*.wav"))
    chart, year = ".chart svg.main-svg", "?from=2026-01-01"
    yield "| | file | dataset |\n|---|---|---|"
    rows: dict[str, list[str]] = {}

    def note(name: str, figure: str) -> None:
        rows.setdefault(name, []).append(figure)

    for name in ("r.parquet", "grown"):
        out = write_results(folder / name, CALLS, windows=WINDOWS, nights=NIGHTS, faults=500)
        html = folder / "report.html"
        started = time.perf_counter()
        subprocess.run([BATCHSER, "report", out, "--html", html], check=True, stdout=subprocess.DEVNULL)
        note("`batchser report`", f"{time.perf_counter() - started:.1f} s")
        note("its size", f"{html.stat().st_size / 1e6:.1f} MB")
        note("its first chart in the browser", f"{shown_s(page, html.as_uri(), chart):.1f} s")
        with dashboard(out, folder) as address:
            note("dashboard, first page, all nights", f"{shown_s(page, f'{address}/{year}', chart):.1f} s")
            note("… again", f"{shown_s(page, f'{address}/{year}', chart):.1f} s")
            note(
                "… one queue, one emotion",
                f"{shown_s(page, f'{address}/{year}&own:queue=billing&emotion=sad', chart):.1f} s",
            )
            note("… moments", f"{shown_s(page, f'{address}/moments?emotion=angry', '.scroll'):.1f} s")
            note("… a call", f"{shown_s(page, f'{address}/call?call_id=call-050000', '#recording-figure svg'):.1f} s")
            note("upload of 60 s to its picture, first", f"{uploaded_s(page, address, recording):.2f} s")
            note("… then", f"{uploaded_s(page, address, recording):.2f} s")
    yield from (f"| {name} | {' | '.join(figures)} |" for name, figures in rows.items())


@click.command()
def main() -> None:
    """Print how long people wait for pages on 100,000 calls with 10 million windows."""
    if BROWSER is None:
        raise click.ClickException("there is no Chromium on this machine: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="batchser-pages-") as name, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        faults: list[str] = []
        page = browser.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        for line in measure(Path(name), page):
            click.echo(line)
        click.echo(f"\nfaults on the console: {faults or 'none'}")
        browser.close()


if __name__ == "__main__":
    main()
