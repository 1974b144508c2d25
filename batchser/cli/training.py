"""The training module: train, tune, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import click

from batchser.cli.entry import cli
from batchser.cli.options import (
    CALLS,
    CHANGES,
    CLIPS_PER_FOLD,
    DATA,
    DEGRADATIONS,
    MODEL,
    PICTURES,
    QUIET,
    SCHEDULER,
    WORKERS,
    model_folders,
    sharing,
)
from batchser.errors import ConfigError
from batchser.settings import DEFAULT_MODEL


@cli.command()
@click.option("--recipe", default=DEFAULT_MODEL, show_default=True, metavar="NAME_OR_TOML",
              help="A recipe of the package, or a TOML file of your own.")  # fmt: skip
@sharing(CHANGES, DATA)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR",
              help="The bundle's folder, made at the end; DIR.work keeps what is done until then.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Keep decoded clips and windows here for other runs that need the same; it only grows.")  # fmt: skip
@sharing(CALLS, WORKERS, DEGRADATIONS, CLIPS_PER_FOLD, PICTURES, QUIET)
def train(
    recipe: str, changes: tuple[str, ...], data: Path, out: Path, cache: Path | None, calls: tuple[Path, ...],
    workers: int | None, degradations: str, clips_per_fold: int, pictures: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """Train a model bundle: the gate, one model a split to be measured, and the model to be shipped.

    The recipe's protocol deals clips into splits; by default every clip is scored by a model that never heard its
    speaker, through the job itself. Killed, the same command goes on after each fit's last epoch.
    """
    from batchser.progress import timed
    from batchser.settings import available_cores
    from batchser.training import evaluate as evaluation
    from batchser.training.evaluate.pictures import make_ready, write_pictures
    from batchser.training.evaluate.report import render_scores
    from batchser.training.recipe import read_recipe
    from batchser.training.train import train as train_bundle

    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.absolute().parent}; make it first")
    options = evaluation.EvaluateOptions(evaluation.choose_degradations(degradations), clips_per_fold or None)
    if pictures is not None:
        make_ready(pictures)
    count = available_cores() if workers is None else workers
    chosen = read_recipe(recipe, changes)
    bundle = train_bundle(chosen, data, out, timed(quiet=quiet), calls, count, options, model_folders(), cache=cache)
    if not quiet:
        click.echo(f"\n{render_scores(bundle.scores, bundle.labels)}\n\n{out}")
    for path in write_pictures(pictures, bundle, bundle.scores) if pictures is not None else ():
        click.echo(path, err=True)


@cli.command()
@click.option("--recipe", default=DEFAULT_MODEL, show_default=True, metavar="NAME_OR_TOML",
              help="A recipe with a table [search]: one of the package, or a TOML file of your own.")  # fmt: skip
@sharing(CHANGES)
@click.option("--trials", type=click.IntRange(min=1), default=50, show_default=True, metavar="N",
              help="Trials in all, those of earlier runs of the same study included.")  # fmt: skip
@click.option("--method", type=click.Choice(("pruned", "random")), default="pruned", show_default=True,
              help="pruned: look where it went well (TPE) and end bad trials early; random: neither.")  # fmt: skip
@click.option("--parts", type=click.IntRange(min=2), default=3, show_default=True, metavar="N",
              help="Parts that the training clips are dealt into; a trial fits one network for each.")  # fmt: skip
@DATA
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE.toml",
              help="The recipe to write, for `batchser train --recipe`; the study is kept in FILE.study/.")  # fmt: skip
@sharing(WORKERS, SCHEDULER, QUIET)
def tune(
    recipe: str, changes: tuple[str, ...], trials: int, method: str, parts: int, data: Path, out: Path,
    workers: int | None, scheduler: str | None, quiet: bool,
) -> None:  # fmt: skip
    """Look for better values of a recipe's keys: those, and within what, that its table [search] names.

    Trials hear the training clips of the recipe's first split alone and are validated on speakers (under the protocol
    random: clips) kept apart, so that the split's test clips can say whether it helped. Killed, the same command goes
    on; with more --trials it goes further.

    \b
    [search]
    "network.units" = [[64, 64], [128, 128], [256, 128]]
    "fit.learning_rate" = { from = 1e-4, to = 1e-2, log = true }
    """
    from batchser.progress import timed
    from batchser.settings import available_cores
    from batchser.training.recipe import read_values
    from batchser.training.tune import Options
    from batchser.training.tune import tune as tune_recipe

    if out.suffix != ".toml" or not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: expected a name that ends in .toml, in a folder that exists")
    if scheduler is not None and workers is not None:
        raise ConfigError("--workers and --scheduler: give one of them; the workers of a scheduler are its own")
    options = Options(method, parts, available_cores() if workers is None else workers, scheduler)
    found = tune_recipe(read_values(recipe, changes), data, out, trials, timed(quiet=quiet), options)
    if not quiet:
        ended = ", ".join(f"{count} {name.lower()}" for name, count in found.endings.items() if count)
        before = f"{found.uar_before:.3f}" if found.uar_before is not None else "not known"
        click.echo(f"trials: {ended}; UAR of the parts {found.uar:.3f}, of the recipe as it stood {before}")
        click.echo(f"recipe   {found.path}\npicture  {found.picture}")


@cli.command()
@sharing(MODEL, DATA)
@click.option("--corpora", multiple=True, metavar="NAME_OR_MANIFEST",
              help="Measure the shipped model on this instead, as often as you like: a manifest of your own labelled "
              "calls, or a corpus that it was not trained on, as they are recorded.")  # fmt: skip
@sharing(CALLS, DEGRADATIONS, CLIPS_PER_FOLD, PICTURES)
@click.option("--json", "as_json", is_flag=True, help="Print the scores as one JSON object.")
@sharing(QUIET)
def evaluate(
    model: str, data: Path, corpora: tuple[str, ...], calls: tuple[Path, ...], degradations: str, clips_per_fold: int,
    pictures: Path | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Measure a bundle again: its split models on the clips they never heard, through the job, on a telephone line.

    With --corpora: its shipped model on your own labelled calls, without those of speakers that it was trained on.

    The protocol comes first: a score means nothing without it. Then accuracy, UAR and F1 with intervals, per corpus,
    split, sex and age; calibration; degraded lines; composed calls. A bundle's model card says the same.
    """
    from batchser.bundle import find_bundle
    from batchser.progress import timed
    from batchser.training import evaluate as evaluation
    from batchser.training.corpora import render_faults
    from batchser.training.evaluate.pictures import make_ready, write_pictures
    from batchser.training.evaluate.report import render_scores

    if corpora and calls:
        raise ConfigError("--corpora and --calls: give one of them; composed calls are scored by the split models")
    bundle = find_bundle(model, model_folders())
    options = evaluation.EvaluateOptions(evaluation.choose_degradations(degradations), clips_per_fold or None)
    if pictures is not None:
        make_ready(pictures)
    read = evaluation.read_clips(bundle, data, corpora)
    if read.faults and not quiet:
        click.echo(render_faults(read.faults), err=True)
    report = timed(quiet=quiet)
    if corpora:
        scores = evaluation.evaluate_strangers(bundle, read.clips, options, report=report)
    else:
        scores = evaluation.evaluate_bundle(bundle, read.clips, calls, options, report=report)
    click.echo(json.dumps(scores, indent=1) if as_json else render_scores(scores, bundle.labels))
    for path in write_pictures(pictures, bundle, scores) if pictures is not None else ():
        click.echo(path, err=True)
