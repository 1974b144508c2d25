"""Where a core's time goes: the stages' shares for short, usual and long calls, and for other formats.

    .venv/bin/python tests/bench/profiles.py

One thread, warm, the quickest of three passes, as `make bench` takes its stages. README.md keeps its tables.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import soundfile
from bench import in_fresh_process
from material import RATE_HZ, ROLES, write_call

from batchser.cluster import WORKER_ENVIRONMENT
from batchser.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from stages import Stage

#: Name, how many, seconds each, and libsndfile's container and codec.
_MATERIAL: Final = (
    ("20 s, mu-law", 60, 20.0, "WAV", "ULAW"),
    ("5 min, mu-law", 12, 300.0, "WAV", "ULAW"),
    ("3 h, mu-law", 1, 3 * 3600.0, "WAV", "ULAW"),
    ("5 min, MP3", 12, 300.0, "MP3", "MPEG_LAYER_III"),
    ("5 min, Opus", 12, 300.0, "OGG", "OPUS"),
)


def make_material(folder: Path, count: int, seconds: float, container: str, codec: str) -> list[Path]:
    """Write calls of a format; those that are not mu-law are made of ones that are, a second at a time."""
    paths = []
    for k in range(count):
        path = folder / f"{k:03d}.wav"
        write_call(path, seconds, seed=k)
        if codec != "ULAW":
            other = path.with_suffix("." + container.lower())
            with soundfile.SoundFile(other, "w", RATE_HZ, len(ROLES), codec, format=container) as file:
                for block in soundfile.blocks(path, RATE_HZ, dtype="float32", always_2d=True):
                    file.write(block)
            path = other
        paths.append(path)
    return paths


def _stages(calls: Sequence[Path], model: str, folder: Path) -> list[Stage]:
    from stages import measure_stages

    return measure_stages(calls, model, folder)


def page(measured: Sequence[tuple[str, Sequence[Stage]]]) -> str:
    """A Markdown table: × real time of a core, then each stage's microseconds for a recorded second and its share."""
    names = [stage.name for stage in measured[0][1][:-1]]
    head = ["recordings", "× real time a core", *names]
    lines = [" | ".join(head), "|".join("---" for _ in head)]
    for what, stages in measured:
        whole = stages[-1]
        cells = [
            f"{stage.seconds / whole.audio_s * 1e6:.0f} ({stage.seconds / whole.seconds:.0%})" for stage in stages[:-1]
        ]
        lines.append(" | ".join([what, f"{whole.audio_s / whole.seconds:,.0f}", *cells]))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


@click.command()
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Bundle, by name or folder.")
def main(model: str) -> None:
    """Measure each stage on recordings of several lengths and formats."""
    os.environ.update({key: str(value) for key, value in WORKER_ENVIRONMENT.items()})
    measured = []
    for what, count, seconds, container, codec in _MATERIAL:
        with tempfile.TemporaryDirectory(prefix="batchser-profile-") as name:
            calls = make_material(Path(name), count, seconds, container, codec)
            measured.append((what, in_fresh_process(_stages, calls, model, Path(name))))
    click.echo("µs for a recorded second (part of the whole)\n\n" + page(measured))


if __name__ == "__main__":
    sys.exit(main())
