"""The five published systems side by side: `make papers DATA=CORPORA` fills their table and prints it.

Every row is one `batchser train`, whose bundle stays in --bundles; a row that was killed goes on. Its figures are kept
in published/ROW.json beside this file as soon as it is done, and such a row is not trained again: README's table is
these files. Rows share decoded clips and windows (--bundles/cache): the minutes of the first one hold making them.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

ROWS_DIR = Path(__file__).with_name("published")
#: Protocols by their row's suffix, as changes to the recipe: the paper's own, one fold of strangers, and leaking.
PROTOCOLS = {
    "own": (),
    "strangers": ("protocol=speaker-folds", "folds=[4]"),
    "leaky": ("protocol=random-leaky",),
}
CREMA_D = ('corpora=["CREMA-D"]', 'labels=["angry","disgust","fearful","happy","neutral","sad"]')
HEAD = (
    "| row | paper | accuracy | UAR | UAR, mu-law | not heard | MFLOP | ms, 1 | ms, 256 | minutes | `batchser train` |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class System:
    """A recipe, or a variant of it, and what its paper reports: accuracy on a random part of its own data, per cent."""

    recipe: str
    published: str = "–"
    variant: str = ""
    changes: tuple[str, ...] = ()
    protocols: tuple[str, ...] = tuple(PROTOCOLS)


SYSTEMS = (
    System("dual-lstm-stack", "83.26"),
    System("dual-lstm-stack", "83.26", "256-256-128", ("network.units=[256, 256, 128]",), ("own",)),
    System("dual-lstm-stack", "73 to 81", "512-256-128", ("network.units=[512, 256, 128]",), ("own",)),
    System("dual-lstm-mfcc20", "87.33"),
    System("dual-lstm-mfcc20", "–", "crema-d", CREMA_D, ("strangers",)),  # where its tuned one begins
    System("dual-lstm-tuned", protocols=("strangers",)),
    System("lstm-mfcc20", "85.33"),  # "2 %" less than with the second layer
    System("lstm-mfcc13", "73"),
    System("lstm-mfcc13", "–", "128", ("network.units=[128, 64]",), ("own",)),
    System("dense-prosody", "65.14"),
    System("cnn-lstm-prosody"),
    System("cnn2d-lstm", "94.02"),
    System("wideband-8", protocols=("own", "strangers")),
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    system: System
    protocol: str

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.system.recipe, self.system.variant, self.protocol)))

    @property
    def file(self) -> Path:
        return ROWS_DIR / f"{self.name}.json"

    @property
    def changes(self) -> tuple[str, ...]:
        return self.system.changes + PROTOCOLS[self.protocol]

    def sha256(self) -> str:
        """Stand for what the recipe says, with the changes, but for what only `batchser tune` looks at."""
        from batchser.settings import fingerprint_of
        from batchser.training.recipe import read_values

        values = read_values(self.system.recipe, self.changes)
        values.pop("search", None)
        return fingerprint_of(values)

    def trained(self, body: dict[str, Any]) -> bool:
        """Whether a bundle was trained by the recipe as it is now; settings that came later are not compared."""
        from batchser.training.recipe import read_recipe

        recipe = dataclasses.asdict(read_recipe(self.system.recipe, self.changes))
        return alike(body["training"]["whole_recipe"], json.loads(json.dumps(recipe)))


def alike(known: Any, other: Any) -> bool:
    """Whether two settings agree in what both say."""
    if isinstance(known, dict) and isinstance(other, dict):
        return all(alike(known[name], other[name]) for name in known.keys() & other.keys())
    return bool(known == other)


ROWS = tuple(Row(system, protocol) for system in SYSTEMS for protocol in system.protocols)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--bundles", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True)
@click.option("--only", multiple=True, help="Rows to fill, such as lstm-mfcc13-own; all without it.")
@click.option("--latency", is_flag=True, help="Time one LSTM layer beside two, by turns, and nothing else.")
@click.option("--paired", nargs=2, metavar="ROW OTHER", help="Compare two rows on the clips of both, and nothing else.")
def main(
    data: Path | None, bundles: Path, only: tuple[str, ...], *, latency: bool, paired: tuple[str, str] | None
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else a row's training would go on alone
    unknown = {*only, *(paired or ())} - {row.name for row in ROWS}
    if unknown:
        names = ", ".join(row.name for row in ROWS)
        raise click.UsageError(f"received {', '.join(sorted(unknown))}; rows: {names}")
    if paired:
        if data is None:
            raise click.UsageError("--paired needs --data")
        click.echo(points_between(*(bundles / name for name in paired), data))
        return
    if latency:
        click.echo(latencies())
        return
    for row in ROWS:
        if row.file.is_file():
            if json.loads(row.file.read_text())["recipe_sha256"] != row.sha256():
                click.echo(f"{row.name}: its recipe has changed; remove {row.file} and its bundle to fill it", err=True)
        elif data is not None and (not only or row.name in only):
            filled = fill(row, data, bundles)
            beside = row.file.with_suffix(".part")
            beside.write_text(json.dumps(filled, indent=1) + "\n")
            beside.replace(row.file)
    click.echo(table())


def recipe_options(row: Row) -> list[str]:
    """What a row's `batchser train` says of its recipe."""
    return ["--recipe", row.system.recipe, *(word for change in row.changes for word in ("--set", change))]


def command_of(row: Row, data: str, out: str) -> list[str]:
    """The command that trains and measures a row."""
    measured = ["--data", data, "--out", out, "--degradations", "mu-law", "--clips-per-fold", "0"]
    return ["batchser", "train", *recipe_options(row), *measured]


def fill(row: Row, data: Path, bundles: Path) -> dict[str, Any]:
    """Train a row's bundle, or go on with it, and note its figures. The minutes are those of all its runs."""
    bundles.mkdir(parents=True, exist_ok=True)
    out, clock = bundles / row.name, bundles / f"{row.name}.seconds"
    if not out.is_dir():
        train([*command_of(row, str(data), str(out)), "--cache", str(bundles / "cache")], row, clock)
    body = json.loads((out / "bundle.json").read_text())
    if not row.trained(body):
        raise SystemExit(f"{row.name}: {out} was trained by another recipe; remove it to fill the row")
    clips, lines = body["scores"]["clips"], body["scores"]["degradations"]["rows"]
    return {
        "row": row.name,
        "recipe_sha256": row.sha256(),
        "command": shlex.join(command_of(row, "CORPORA", f"OUT/{row.name}")),
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


def train(command: Sequence[str], row: Row, clock: Path) -> None:
    """Train a row's bundle, keeping the time that it took in all its runs."""
    before = float(clock.read_text()) if clock.is_file() else 0.0
    started = time.monotonic()
    program, *words = command
    run = subprocess.Popen([str(Path(sys.executable).with_name(program)), *words])
    try:
        while run.poll() is None:
            time.sleep(1)
            beside = clock.with_suffix(".part")
            beside.write_text(f"{before + time.monotonic() - started:.0f}\n")
            beside.replace(clock)
    finally:
        run.terminate()
    if run.returncode:
        raise SystemExit(f"{row.name}: ended with {run.returncode}; the same command goes on from where it was")


def milliseconds(folder: Path) -> dict[str, float]:
    """Milliseconds a window in the network on one thread, alone and in a batch of 256: the median of passes."""
    from batchser.bundle import open_bundle
    from batchser.scoring import Model, start_tensorflow

    start_tensorflow(1)
    model = Model(open_bundle(folder), engine_name="tensorflow")  # one engine for all rows
    features = model.bundle.features
    found = {}
    for batch, passes in ((1, 100), (256, 3)):
        inputs = np.zeros((batch, features.num_steps, features.num_features), np.float32)
        score = model._emotion  # the network itself: the model would cut the batch into slices
        np.asarray(score(inputs))
        times = [seconds(score, inputs) for _ in range(passes)]
        found[str(batch)] = 1000 * float(np.median(times)) / batch
    return found


def seconds(score: Any, inputs: np.ndarray) -> float:
    started = time.perf_counter()
    np.asarray(score(inputs))
    return time.perf_counter() - started


def latencies() -> str:
    """Paper 001's claim that a second layer lowers latency: both networks by turns, on one thread, as a table."""
    from batchser import networks
    from batchser.scoring import inference, start_tensorflow
    from batchser.training.recipe import read_recipe

    start_tensorflow(1)
    scorers = {}
    for name in ("lstm-mfcc20", "dual-lstm-mfcc20"):
        recipe = read_recipe(name)
        shape = (recipe.features.num_steps, recipe.features.num_features)
        network = networks.build(recipe.network.name, *shape, len(recipe.labels), recipe.network.options)
        scorers[name] = inference(network, *shape)
    lines = ["| batch | one layer, ms a window | two layers | ratio (95 %) |", "|---|---|---|---|"]
    for batch, passes in ((1, 500), (256, 40)):
        inputs = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
        for score in scorers.values():
            seconds(score, inputs)
        times = np.array([[seconds(score, inputs) for score in scorers.values()] for _ in range(passes)])
        one, two = 1000 * np.median(times, axis=0) / batch
        draws = np.random.default_rng(0).integers(passes, size=(1000, passes))
        ratios = np.divide(*np.median(times[draws], axis=1).T[::-1])
        low, high = np.percentile(ratios, [2.5, 97.5])
        lines.append(f"| {batch} | {one:.3f} | {two:.3f} | {two / one:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines)


def points_between(one: Path, other: Path, data: Path) -> str:
    """UAR of another bundle's split models less that of one's, on the same clips: points, with a 95 % interval."""
    from batchser.bundle import open_bundle
    from batchser.scoring import start_tensorflow
    from batchser.training import evaluate
    from batchser.training.evaluate import scores

    start_tensorflow(1)
    found = []
    for folder in (one, other):
        bundle = open_bundle(folder)
        clips = evaluate.read_clips(bundle, data).clips
        splits = evaluate.bundle_splits(bundle, clips)
        parts = [evaluate.score_split(clips, s, evaluate.split_model(bundle, s.name), click.echo) for s in splits]
        found.append(scores.join(parts))
    if not np.array_equal(*(part.truth for part in found)) or not np.array_equal(*(part.speakers for part in found)):
        raise click.UsageError(f"--paired: {one.name} and {other.name} were not tested on the same clips")
    gained = scores.compare(*reversed(found), threshold=0.0)
    low, high = gained["points_interval"] or (float("nan"), float("nan"))
    return f"{other.name} less {one.name}: UAR {gained['points']:+.1f} points ({low:+.1f} to {high:+.1f})"


def table() -> str:
    """The rows that are filled, as Markdown."""
    lines = list(HEAD)
    for row in ROWS:
        if not row.file.is_file():
            continue
        known = json.loads(row.file.read_text())
        published = row.system.published if row.protocol != "strangers" else "–"
        low, high = known["intervals"]["uar"] or (float("nan"), float("nan"))
        lines.append(
            f"| `{row.name}` | {published} | {100 * known['accuracy']:.1f} | "
            f"{100 * known['uar']:.1f} ({100 * low:.1f} to {100 * high:.1f}) | {100 * known['mu_law_uar']:.1f} | "
            f"{known['not_heard']} | {known['mflop']:g} | {known['ms']['1']:.2f} | {known['ms']['256']:.3f} | "
            f"{known['minutes'] or 0:.0f} | `{shlex.join(recipe_options(row))}` |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
