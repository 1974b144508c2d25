"""The five published systems side by side: `make papers DATA=CORPORA` fills results/ and prints their table.

Every row is one `batchser train` whose bundle stays in the folder; a row that is there is not trained again, one that
was killed goes on. A row's file, ROW.json, is written as soon as the row is done.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

#: What the papers report: accuracy on a random part of their own data, in percent.
PUBLISHED = {
    "dual-lstm-stack": 83.26,
    "dual-lstm-mfcc20": 87.33,
    "lstm-mfcc20": 85.33,  # "2 %" less than with the second layer
    "lstm-mfcc13": 73.0,
    "dense-prosody": 65.14,
    "cnn-lstm-prosody": None,
    "cnn2d-lstm": 94.02,
}
#: Protocols by their row's suffix, as changes to the recipe: the paper's own, one fold of strangers, and leaking.
PROTOCOLS = {
    "own": (),
    "strangers": ("protocol=speaker-folds", "folds=[4]"),
    "leaky": ("protocol=random-leaky",),
}
HEAD = (
    "| recipe | protocol | paper | accuracy | UAR | UAR, mu-law | not heard | MFLOP | ms, 1 | ms, 256 | minutes |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    recipe: str
    protocol: str

    @property
    def name(self) -> str:
        return f"{self.recipe}-{self.protocol}"


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--results", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True)
@click.option("--only", multiple=True, help="Rows to fill, such as lstm-mfcc13-own; all without it.")
def main(data: Path, results: Path, only: tuple[str, ...]) -> None:
    results.mkdir(parents=True, exist_ok=True)
    rows = [Row(recipe, protocol) for recipe in PUBLISHED for protocol in PROTOCOLS]
    unknown = set(only) - {row.name for row in rows}
    if unknown:
        raise click.UsageError(
            f"--only: received {', '.join(sorted(unknown))}; rows: {', '.join(r.name for r in rows)}"
        )
    for row in rows:
        file = results / f"{row.name}.json"
        if not file.is_file() and (not only or row.name in only):
            filled = fill(row, data, results)
            beside = file.with_suffix(".part")
            beside.write_text(json.dumps(filled, indent=1) + "\n")
            beside.replace(file)
    done = [
        json.loads((results / f"{r.name}.json").read_text()) for r in rows if (results / f"{r.name}.json").is_file()
    ]
    for row in done:
        if row["recipe_sha256"] != recipe_sha256(Row(row["recipe"], row["protocol"])):
            click.echo(
                f"{row['recipe']}-{row['protocol']}: its recipe has changed since; move its files away", err=True
            )
    click.echo(table(done))


def fill(row: Row, data: Path, results: Path) -> dict[str, Any]:
    """Train a row's bundle, or go on with it, and note its figures. The minutes are those of all its runs."""
    out, clock = results / row.name, results / f"{row.name}.seconds"
    words = [word for change in PROTOCOLS[row.protocol] for word in ("--set", change)]
    command = [str(Path(sys.executable).with_name("batchser")), "train", "--recipe", row.recipe, *words]
    command += ["--data", str(data), "--out", str(out), "--degradations", "mu-law", "--clips-per-fold", "0"]
    if not out.is_dir():
        before = float(clock.read_text()) if clock.is_file() else 0.0
        started = time.monotonic()
        run = subprocess.Popen(command)
        while run.poll() is None:
            time.sleep(1)
            clock.write_text(f"{before + time.monotonic() - started:.0f}\n")
        if run.returncode:
            raise SystemExit(f"{row.name}: ended with {run.returncode}; the same command goes on from where it was")
    body = json.loads((out / "bundle.json").read_text())
    clips, lines = body["scores"]["clips"], body["scores"]["degradations"]["rows"]
    return {
        "recipe": row.recipe,
        "protocol": row.protocol,
        "recipe_sha256": recipe_sha256(row),
        "command": " ".join(["batchser", *command[1:]]),
        "accuracy": clips["accuracy"],
        "uar": clips["uar"],
        "intervals": clips["intervals"],
        "clips": clips["clips"],
        "speakers": clips["speakers"],
        "not_heard": clips["not_heard"],
        "mu_law_uar": lines["mu-law"]["uar"],
        "mflop": body["training"]["window_mflop"],
        "ms": milliseconds(out),
        "minutes": float(clock.read_text()) / 60 if clock.is_file() else None,
        "versions": body["training"]["versions"],
    }


def recipe_sha256(row: Row) -> str:
    """Stand for what a row is trained by: its recipe with the protocol's changes."""
    from batchser.settings import fingerprint_of
    from batchser.training.recipe import read_recipe

    return fingerprint_of(dataclasses.asdict(read_recipe(row.recipe, PROTOCOLS[row.protocol])))


def milliseconds(folder: Path) -> dict[str, float]:
    """Milliseconds a window in the network on one thread, alone and in a batch of 256: the median of passes."""
    from batchser.bundle import open_bundle
    from batchser.scoring import Model, start_tensorflow

    start_tensorflow(1)
    model = Model(open_bundle(folder))
    features = model.bundle.features
    found = {}
    for batch, passes in ((1, 100), (256, 3)):
        inputs = np.zeros((batch, features.num_steps, features.num_features), np.float32)
        score = model._emotion  # the network itself: the model would cut the batch into slices
        np.asarray(score(inputs))
        times = []
        for _ in range(passes):
            started = time.perf_counter()
            np.asarray(score(inputs))
            times.append(time.perf_counter() - started)
        found[str(batch)] = 1000 * float(np.median(times)) / batch
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = list(HEAD)
    for row in rows:
        published = PUBLISHED[row["recipe"]] if row["protocol"] != "strangers" else None
        low, high = row["intervals"]["uar"] or (float("nan"), float("nan"))
        lines.append(
            f"| `{row['recipe']}` | {row['protocol']} | {published or '–'} | {100 * row['accuracy']:.1f} | "
            f"{100 * row['uar']:.1f} ({100 * low:.1f} to {100 * high:.1f}) | {100 * row['mu_law_uar']:.1f} | "
            f"{row['not_heard']} | {row['mflop']:g} | {row['ms']['1']:.2f} | {row['ms']['256']:.2f} | "
            f"{row['minutes'] or 0:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
