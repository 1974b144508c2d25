"""The command line: parse, call, exit code. Heavy imports live inside the commands, so that --help is quick."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchser import __version__, logs
from batchser.errors import BatchserError, ConfigError
from batchser.settings import AUTO_ENGINE, DEFAULT_MODEL, DEFAULT_PROTOCOLS, ENGINES, TrustSettings

if TYPE_CHECKING:
    from batchser.runner import Job, Report
    from batchser.settings import RunSettings

EXIT_CONFIG, EXIT_BROKEN, EXIT_INTERRUPTED = 2, 3, 130

_Command = Callable[..., Any]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that DESIGN.md promises."""
    logs.configure("text")
    signal.signal(signal.SIGTERM, _interrupt)
    # NumPy's own threads gain nothing on our small matrices, and spin where other processes want the cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        code = cli.main(args=arguments, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = EXIT_CONFIG
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; a run keeps what is done: the same command, without --fresh, resumes", "")
        code = EXIT_INTERRUPTED
    except ConfigError as error:
        for fault in error.faults:
            _fail(fault)
        code = EXIT_CONFIG
    except BatchserError as error:
        _fail(str(error))
        code = EXIT_BROKEN
    except Exception:
        logging.getLogger(__name__).exception("the run broke off; the same command resumes. Please report this")
        code = EXIT_BROKEN
    sys.exit(code if isinstance(code, int) else 0)


def _fail(sentence: str, prefix: str = "error: ") -> None:
    """Say why a command ends, in the log's format."""
    if logs.current()[0] == "json":
        logs.tell(sentence, level=logging.ERROR)
    else:
        click.echo(f"{prefix}{sentence}", err=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Make a TOML file's keys the defaults of the command's options; what the command line says wins."""
    if path is None:
        return
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read as TOML: {error}") from error
    tables = {name: values.pop(name) for name in ("limits", "summary") if isinstance(values.get(name), dict)}
    known = {p.name for p in context.command.params if isinstance(p, click.Option)} - {"config"}
    names = {key: key.replace("-", "_") for key in values}
    unknown = [key for key, name in names.items() if name not in known]
    faults = [f"--config {path}: key {key!r} is no option of `batchser {context.info_name}`" for key in unknown]
    if unknown:
        faults.append(f"--config {path}: expected some of {', '.join(sorted(known))}, [limits], [summary]")
    if faults:
        raise ConfigError(faults)
    context.default_map = {names[key]: _as_words(value) for key, value in values.items()}
    context.obj = tables


def _as_words(value: Any) -> Any:
    """Join a list of words, as roles may be written in TOML, with commas."""
    return ",".join(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Several commands share these options."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_MODEL = click.option(
    "--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME_OR_DIR",
    help="An installed bundle's name (`batchser models` lists them) or a bundle's folder.",
)  # fmt: skip
_ROLES = click.option(
    "--roles", default="customer,mixed", show_default=True, metavar="ROLES",
    help="Roles to score: some of agent, customer, mixed, unknown; or all. Agents are not scored unless named: in the "
    "EU inferring employees' emotions is prohibited.",
)  # fmt: skip
_CHANNEL_ROLES = click.option(
    "--channel-roles", metavar="ROLES",
    help="Who speaks on which channel, e.g. agent,customer, for recordings whose manifest row states none.",
)  # fmt: skip
_WORKERS = click.option(
    "--workers", type=click.IntRange(min=0), metavar="N",
    help="Worker processes. 0: all in this process. Default: one for every processor.",
)  # fmt: skip
_SCHEDULER = click.option(
    "--scheduler", metavar="ADDRESS", help="Work on the Dask cluster of this scheduler (tcp://host:8786).",
)  # fmt: skip
_ENGINE = click.option(
    "--engine", type=click.Choice(ENGINES), default=AUTO_ENGINE, show_default=True,
    help="What runs the networks; answers are the same. auto: TensorFlow on a GPU that it finds and for networks that "
    "only it has, else OpenVINO.",
)  # fmt: skip
_CHANGES = click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE",
    help="Change the recipe: fit.epochs=3, folds=[4], protocol=random. May be repeated.",
)  # fmt: skip
_CONFIG = click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), is_eager=True, expose_value=False,
    callback=_read_config, metavar="FILE.toml",
    help="Defaults for all options of this command, by name (`channel_roles = \"agent,customer\"`), and the tables "
    "[limits] and [summary].",
)  # fmt: skip
_TRUST = (
    click.option(
        "--root", metavar="DIR_OR_URL",
        help="Recordings must lie in it, links and .. followed; others are unreadable. For manifests that are not "
        "yours.",
    ),
    click.option(
        "--protocols", default=",".join(DEFAULT_PROTOCOLS), show_default=True, metavar="LIST",
        help="Protocols of URLs that manifests may name, besides those of INPUT itself.",
    ),
    click.option(
        "--max-rows", type=click.IntRange(min=1), default=TrustSettings().max_rows, show_default=True, metavar="N",
        help="A manifest of more rows is refused before it is taken in.",
    ),
)  # fmt: skip
_QUIET = click.option("--quiet", is_flag=True, help="Say nothing but errors.")
_DATA = click.option(
    "--data", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR", required=True,
    help="Folder with the corpora as their owners lay them out, folds in index.csv if you have them; music/ and noise/ "
    "for the gate.",
)  # fmt: skip
_DEGRADATIONS = click.option(
    "--degradations", default="all", show_default=True, metavar="all|none|NAMES",
    help="Degraded lines to score clips through as well, a comma-separated list of names; all: those that this "
    "machine's libraries can make.",
)  # fmt: skip
_CLIPS_PER_FOLD = click.option(
    "--clips-per-fold", type=click.IntRange(min=0), default=400, show_default=True, metavar="N",
    help="So many clips of each fold, drawn by a seed, go through each degradation. 0: all.",
)  # fmt: skip
_PICTURES = click.option(
    "--pictures", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Draw confusion matrices, reliability diagram and learning curves into this folder.",
)  # fmt: skip
_CALLS = click.option(
    "--calls", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR", multiple=True,
    help="Folder of composed calls (manifest.csv, turns.csv), to be scored window by window by the model that never "
    "heard its customers: those of one fold. May be given several times; the gate is a stranger to one fold alone.",
)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="batchser")
def cli() -> None:
    """Turn a night's call-centre recordings into Parquet tables of emotion.

    \b
    Start here:
      batchser check RECORDINGS                       what is there, and how long will it take?
      batchser run RECORDINGS --out results.parquet   score it all
      batchser score ONE.wav                          one recording, now, on the terminal
    """


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", required=True, metavar="OUT",
              help="A name ending in .parquet: where the calls table goes. Any other: the folder or URL of a dataset "
              "that grows with every run.")  # fmt: skip
@click.option("--segments", metavar="PATH", help="Where the segments table goes. Default: OUT-stem.segments.parquet.")
@_options(_MODEL, _ROLES, _CHANNEL_ROLES, _WORKERS)
@_options(_SCHEDULER, _ENGINE, *_TRUST)
@click.option("--time-limit", type=click.FloatRange(min=1, max=7 * 86400), default=120, show_default=True,
              metavar="SECONDS",
              help="What a recording may take besides half of its own length. A process that takes longer over one is "
              "ended, and the recording's row says crashed.")  # fmt: skip
@click.option("--fresh", is_flag=True,
              help="Start anew: drop unfinished work, replace a result of other inputs. In a dataset: score these "
              "inputs again.")  # fmt: skip
@click.option("--retry-failed", is_flag=True,
              help="In a dataset: score those again that are there as crashed or failed.")  # fmt: skip
@click.option("--json-summary", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write what the run did to this JSON file.")  # fmt: skip
@click.option("--metrics", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write what the run did to this file as Prometheus text, for node_exporter's textfile "
              "collector.")  # fmt: skip
@click.option("--log-format", type=click.Choice(logs.FORMATS), default=logs.FORMATS[0], show_default=True,
              help="What stderr gets: sentences for people, or JSON objects, one a line, one a shard.")  # fmt: skip
@_options(_QUIET, _CONFIG)
@click.pass_context
def run(context: click.Context, /, **options: Any) -> None:
    """Score recordings and write two Parquet tables: one row per call, one row per 3-second window.

    INPUT is a manifest (CSV or Parquet with a `path` column), a folder, a glob, an audio file or an fsspec URL; several
    are taken one after another. Interrupted, the same command goes on where it stopped; finished, it does nothing. An
    OUT that does not end in .parquet is a dataset that grows night by night: what stands there as it is, is skipped.

    \b
    Exit codes: 0 every recording was read; 1 done, but some could not be (their rows say why); 2 wrong usage, nothing
    started; 3 the run broke off, 130 it was interrupted: repeat the command, without --fresh, to go on.
    """
    logs.configure(options["log_format"])
    for name in ("json_summary", "metrics"):
        path: Path | None = options[name]
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"--{name.replace('_', '-')} {path}: there is no folder {path.absolute().parent}")
    from batchser.runner import Job

    job = Job(
        inputs=tuple(options["inputs"]),
        out=options["out"],
        segments=options["segments"],
        model=options["model"],
        search=_model_folders(),
        settings=_run_settings(options, context.obj),
        workers=options["workers"],
        scheduler=options["scheduler"],
        engine=options["engine"],
        fresh=options["fresh"],
        retry_failed=options["retry_failed"],
        time_limit_s=options["time_limit"],
    )
    report = _watched(job, options["metrics"], in_json=options["log_format"] == "json", quiet=options["quiet"])
    if options["json_summary"] is not None:
        _write_summary(options["json_summary"], report)
    if not options["quiet"]:
        _print_report(report)
    context.exit(report.exit_code)


def _watched(job: Job, metrics_path: Path | None, *, in_json: bool, quiet: bool) -> Report:
    """Do a job, its progress shown, and its metrics written however it ends."""
    from batchser import runner
    from batchser.metrics import Meter, write_metrics
    from batchser.progress import ClickProgress

    meter = Meter(logs.JsonProgress(quiet=quiet) if in_json else ClickProgress(quiet=quiet))
    report, exit_code = None, EXIT_BROKEN
    try:
        report = runner.run(job, meter)
        exit_code = report.exit_code
    except ConfigError:
        exit_code = EXIT_CONFIG
        raise
    except KeyboardInterrupt:
        exit_code = EXIT_INTERRUPTED
        raise
    finally:
        if metrics_path is not None:
            try:
                write_metrics(metrics_path.absolute(), exit_code, report, meter.stages)
            except BatchserError as error:  # what the run itself ends with matters more
                logging.getLogger(__name__).warning("--metrics %s", error)
    if not quiet:
        logs.tell("finished", {"event": "finished", **asdict(report)})
    return report


def _write_summary(path: Path, report: Report) -> None:
    try:
        path.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BatchserError(
            f"--json-summary {path}: cannot be written ({error.strerror}); the tables are complete"
        ) from error


def _print_report(report: Report) -> None:
    from batchser.runner import faults_of

    statuses = ", ".join(f"{count} {status}" for status, count in report.by_status.items() if count)
    click.echo(f"{report.recordings} recordings ({statuses}); {report.recordings_reused} were done before")
    reused = report.recordings_reused == report.recordings
    speed = "nothing was left to score" if reused else f"{report.x_realtime:.0f} x real time"
    click.echo(
        f"{report.audio_s / 3600:.2f} hours of audio, {report.scored_windows} windows scored by {report.model}, "
        f"in {report.seconds:.1f} s ({speed})"
    )
    for call_id, status, error in faults_of(report, most=5):
        if logs.current()[0] == "json":
            logs.tell(error, {"event": "fault", "call_id": call_id, "status": status}, logging.WARNING)
        else:
            click.echo(f"  {status}: {call_id}: {error}", err=True)
    calls = report.out if report.out.endswith(".parquet") else f"{report.out}/calls"
    click.echo(f"calls     {calls}\nsegments  {report.segments}")


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@_options(_MODEL, _ROLES, _CHANNEL_ROLES, _WORKERS, _ENGINE, *_TRUST)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a page.")
@_options(_CONFIG)
@click.pass_context
def check(context: click.Context, /, **options: Any) -> None:
    """Look before a run: read headers only and tell formats, channels, hours, faults, and how long a run will take.

    A few minutes of the recordings are scored to measure this machine; nothing is written. Exit code 1 if some
    recordings cannot be read.
    """
    from batchser.preflight import survey

    found = survey(
        options["inputs"],
        options["model"],
        _model_folders(),
        _run_settings(options, context.obj),
        options["workers"],
        options["engine"],
    )
    click.echo(json.dumps(asdict(found), indent=1) if options["as_json"] else found.page())
    context.exit(1 if found.faults else 0)


@cli.command()
@click.argument("out", metavar="OUT")
@click.option("--older-than", type=click.IntRange(min=1, max=36_500), metavar="DAYS",
              help="Forget days that lie more than so many days back, by their date in UTC.")  # fmt: skip
@click.option("--call", "call_ids", multiple=True, metavar="CALL_ID",
              help="Erase this call and its windows wherever they stand. May be repeated.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would go, and leave it.")
def vacuum(out: str, older_than: int | None, call_ids: tuple[str, ...], dry_run: bool) -> None:
    """Forget days past their retention, or single calls on request, in the dataset at OUT.

    The recordings are not ours to remove: a run that finds an erased one scores it again. What a run that died has left
    is committed first. Exit code 1 if a call stands nowhere.
    """
    from datetime import UTC, datetime, timedelta

    from batchser import sink

    if older_than is None and not call_ids:
        raise ConfigError("nothing to forget: give --older-than DAYS, or --call CALL_ID")
    before = None if older_than is None else datetime.now(UTC).date() - timedelta(days=older_than)
    done = sink.vacuum(out, before=before, call_ids=call_ids, dry_run=dry_run)
    click.echo(f"{'would forget' if dry_run else 'forgot'} {len(done.days)} days and {len(done.calls)} calls")
    for day in done.days:
        click.echo(f"  {day}")
    for call_id in done.unknown:
        click.echo(f"{call_id}: no such call in the dataset", err=True)
    if done.unknown:
        sys.exit(1)


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@_options(_MODEL, _ROLES, _CHANNEL_ROLES, _ENGINE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per window, one a line.")
@_options(_CONFIG)
@click.pass_context
def score(context: click.Context, /, **options: Any) -> None:
    """Score single recordings now and print their windows.

    The same from Python: `batchser.score("call.wav")` returns the table as a pandas DataFrame.
    """
    from batchser.errors import AudioError
    from batchser.pipeline import score_file

    settings = _run_settings(options, context.obj)
    code = 0
    for path in options["files"]:
        try:
            table = score_file(path, settings, options["model"], _model_folders(), options["engine"])
        except AudioError as error:
            click.echo(f"error: {error}", err=True)
            code = 1
            continue
        if options["as_json"]:
            click.echo(table.to_json(orient="records", lines=True), nl=False)
            continue
        shown = table.drop(columns=["call_id"]).to_string(
            index=False, float_format=lambda value: f"{value:.2f}", na_rep="-"
        )
        click.echo(f"{path}\n{shown}\n")
        found = set(table["role"])
        if not found & {*settings.roles} and "all" not in settings.roles:
            click.echo(
                f"{path}: no channel was scored. Roles found: {', '.join(sorted(found))}; scored are "
                f"{options['roles']}. State roles with --channel-roles, or score others with --roles",
                err=True,
            )
        elif table["emotion"].isna().all():
            click.echo(f"{path}: no window holds speech enough to be scored", err=True)
    context.exit(code)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per bundle, one a line.")
@click.pass_context
def models(context: click.Context, /, as_json: bool) -> None:
    """List the installed model bundles: labels, rate, licence, scores.

    Bundles are looked for in the package, then in the folders that the environment variable BATCHSER_MODELS names. Of
    several with one name the first is meant; the others are hidden: give their folder.
    """
    from batchser.bundle import installed, open_bundle
    from batchser.errors import BundleError

    code = 0
    named: set[str] = set()
    for folder in installed(_model_folders()):
        hidden = folder.name in named
        named.add(folder.name)
        try:
            bundle = open_bundle(folder)
        except BundleError as error:
            click.echo(f"error: {error}", err=True)
            code = EXIT_CONFIG
            continue
        clips: Mapping[str, Any] = bundle.scores.get("clips", {})
        if as_json:
            about = {name: getattr(bundle, name) for name in ("name", "labels", "licence", "data", "scores", "sha256")}
            found = {"rate_hz": bundle.features.rate_hz, "folder": str(folder), "hidden": hidden}
            click.echo(json.dumps({**about, **found}))
            continue
        default = " (default)" if bundle.name == DEFAULT_MODEL else ""
        click.echo(f"{bundle.name}{default}: {', '.join(bundle.labels)}")
        click.echo(
            f"  {bundle.features.rate_hz} Hz, {bundle.licence}; data: {', '.join(d['name'] for d in bundle.data)}"
        )
        if clips:
            known = " to ".join(f"{value:.3f}" for value in clips["intervals"]["uar"] or ()) or "no interval"
            protocol = bundle.scores.get("protocol", "speaker-folds")
            splits = len(clips["uar_by_fold"])
            line = bundle.scores.get("line", "mu-law")
            click.echo(f"  UAR {clips['uar']:.3f} ({known}), protocol {protocol}, splits: {splits}, {line}")
        click.echo(f"  {folder}" + (f" (hidden: {folder.name!r} names one above; give this folder)" if hidden else ""))
    context.exit(code)


@cli.command()
@click.option("--recipe", default=DEFAULT_MODEL, show_default=True, metavar="NAME_OR_TOML",
              help="A recipe of the package, or a TOML file of your own.")  # fmt: skip
@_options(_CHANGES, _DATA)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR",
              help="The bundle's folder, made at the end; DIR.work keeps what is done until then.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Keep decoded clips and windows here for other runs that need the same; it only grows.")  # fmt: skip
@_options(_CALLS, _WORKERS, _DEGRADATIONS, _CLIPS_PER_FOLD, _PICTURES, _QUIET)
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
    bundle = train_bundle(chosen, data, out, timed(quiet=quiet), calls, count, options, _model_folders(), cache=cache)
    if not quiet:
        click.echo(f"\n{render_scores(bundle.scores, bundle.labels)}\n\n{out}")
    for path in write_pictures(pictures, bundle, bundle.scores) if pictures is not None else ():
        click.echo(path, err=True)


@cli.command()
@click.option("--recipe", default=DEFAULT_MODEL, show_default=True, metavar="NAME_OR_TOML",
              help="A recipe with a table [search]: one of the package, or a TOML file of your own.")  # fmt: skip
@_options(_CHANGES)
@click.option("--trials", type=click.IntRange(min=1), default=50, show_default=True, metavar="N",
              help="Trials in all, those of earlier runs of the same study included.")  # fmt: skip
@click.option("--method", type=click.Choice(("pruned", "random")), default="pruned", show_default=True,
              help="pruned: look where it went well (TPE) and end bad trials early; random: neither.")  # fmt: skip
@click.option("--parts", type=click.IntRange(min=2), default=3, show_default=True, metavar="N",
              help="Parts that the training clips are dealt into; a trial fits one network for each.")  # fmt: skip
@_DATA
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE.toml",
              help="The recipe to write, for `batchser train --recipe`; the study is kept in FILE.study/.")  # fmt: skip
@_options(_WORKERS, _SCHEDULER, _QUIET)
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
@_options(_MODEL, _DATA)
@click.option("--corpora", multiple=True, metavar="NAME_OR_MANIFEST",
              help="Measure the shipped model on this instead, as often as you like: a manifest of your own labelled "
              "calls, or a corpus that it was not trained on, as they are recorded.")  # fmt: skip
@_options(_CALLS, _DEGRADATIONS, _CLIPS_PER_FOLD, _PICTURES)
@click.option("--json", "as_json", is_flag=True, help="Print the scores as one JSON object.")
@_options(_QUIET)
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
    bundle = find_bundle(model, _model_folders())
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


def _model_folders() -> tuple[Path, ...]:
    """Folders of the user's own bundles: BATCHSER_MODELS, several divided as in PATH."""
    return tuple(Path(folder) for folder in os.environ.get("BATCHSER_MODELS", "").split(os.pathsep) if folder)


def _trust(options: Mapping[str, Any]) -> TrustSettings:
    """How far manifests are trusted; what the command line itself names is."""
    from batchser.audio import schemes_of

    allowed = [word.strip().lower() for word in options["protocols"].split(",") if word.strip()]
    named = [scheme for given in options["inputs"] for scheme in schemes_of(given)]
    root = options["root"]
    if root is not None and (root.startswith("file://") or "://" not in root):
        folder = Path(root.removeprefix("file://")).absolute()  # as it is here: workers may have another folder
        if not folder.is_dir():
            raise ConfigError(f"--root {root}: there is no folder {folder}; name the one that recordings lie in")
        root = str(folder)
    return TrustSettings(root, tuple(dict.fromkeys([*allowed, *named])), options["max_rows"])


def _run_settings(options: Mapping[str, Any], tables: Mapping[str, Any] | None) -> RunSettings:
    """Build what changes results from the options and from the config file's tables, all faults at once."""
    from batchser.pipeline import parse_roles
    from batchser.settings import LimitSettings, RunSettings, SummarySettings

    faults: list[str] = []
    built: dict[str, Any] = {}
    for name, kind in (("limits", LimitSettings), ("summary", SummarySettings)):
        given = (tables or {}).get(name, {})
        known: dict[str, Any] = {item.name: item.default for item in fields(kind) if item.name != "trust"}
        faults += [f"[{name}] {key}: no such key; expected {', '.join(known)}" for key in given if key not in known]
        chosen: dict[str, Any] = {}
        for key in [key for key in given if key in known]:
            number, value = type(known[key]), given[key]
            if isinstance(value, int | number) and not isinstance(value, bool) and value >= 0:
                chosen[key] = number(value)  # 3600 and 3600.0 are one setting
            else:
                expected = "a whole number" if number is int else "a number"
                faults.append(f"[{name}] {key}: received {value!r}, expected {expected} of at least 0")
        built[name] = kind(**chosen)
    if "root" in options:
        built["limits"] = replace(built["limits"], trust=_trust(options))
    for name, allow_all in (("roles", True), ("channel_roles", False)):
        try:
            if options[name]:
                words = parse_roles(options[name], what=f"--{name.replace('_', '-')}", allow_all=allow_all)
                # Roles to score are a set, and one set has one fingerprint; channel roles are a list.
                built[name] = tuple(sorted(set(words))) if name == "roles" else words
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)
    return RunSettings(**built)
