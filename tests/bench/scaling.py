"""How cost grows: with processes, with recordings, with the length of one, with the rows of a manifest.

    .venv/bin/python tests/bench/scaling.py                        # half an hour; --only names some lines

Each line is one `batchser run` on generated calls; the driver's memory and its largest worker's are sampled from
outside. *grown* is what a worker's peak lies above that of the first fifth of its run: beyond its warm-up.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from job import run_job
from material import write_calls

from batchser.settings import DEFAULT_MODEL


@dataclass(frozen=True, slots=True)
class Case:
    """``count`` recordings of ``seconds`` each; ``workers`` processes, None for the default."""

    name: str
    count: int
    seconds: float
    workers: int | None = None


CASES: Final = (
    Case("processes-1", 120, 300.0, 1),
    Case("processes-2", 120, 300.0, 2),
    *(Case(f"recordings-{count}", count, 20.0) for count in (10, 100, 1_000, 10_000)),
    *(Case(f"hours-{hours}", 1, hours * 3600.0) for hours in (1, 12)),
    Case("rows-100000", 100_000, 1.0),
)


def measure(cases: list[Case], model: str) -> Iterator[str]:
    """Run the cases and give a line of a Markdown table for each, under a head."""
    yield "| | recordings | hours | seconds | ms a recording | × real time | driver MB | worker MB | grown MB |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="batchser-scaling-") as name:
            write_calls(Path(name), case.count, case.seconds)
            found = run_job(Path(name) / "manifest.csv", Path(name) / "out.parquet", model, case.workers)
        cells = [
            case.name, f"{case.count:,}", f"{found.audio_s / 3600:.1f}", f"{found.seconds:.1f}",
            f"{found.seconds / case.count * 1000:,.1f}", f"{found.x_realtime:,.0f}", f"{found.peak_driver_mb:.0f}",
            f"{found.peak_worker_mb:.0f}", f"{found.worker_growth_mb:.0f}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


@click.command()
@click.option("--only", multiple=True, type=click.Choice([case.name for case in CASES]), help="Cases; all by default.")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Bundle, by name or folder.")
def main(only: tuple[str, ...], model: str) -> None:
    """Measure how time and memory grow with recordings, their length, and processes."""
    for line in measure([case for case in CASES if not only or case.name in only], model):
        click.echo(line)


if __name__ == "__main__":
    sys.exit(main())
