"""Scoring: run, check, score, and what they need: models, vacuum."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchser import logs
from batchser.cli.entry import EXIT_BROKEN, EXIT_CONFIG, EXIT_INTERRUPTED, cli
from batchser.cli.options import (
    CHANNEL_ROLES,
    CONFIG,
    ENGINE,
    MODEL,
    QUIET,
    ROLES,
    SCHEDULER,
    TRUST,
    WORKERS,
    model_folders,
    run_settings,
    sharing,
)
from batchser.errors import BatchserError, ConfigError
from batchser.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from batchser.runner import Job, Report


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", required=True, metavar="OUT",
              help="A name ending in .parquet: where the calls table goes. Any other: the folder or URL of a dataset "
              "that grows with every run.")  # fmt: skip
@click.option("--segments", metavar="PATH", help="Where the segments table goes. Default: OUT-stem.segments.parquet.")
@sharing(MODEL, ROLES, CHANNEL_ROLES, WORKERS)
@sharing(SCHEDULER, ENGINE, *TRUST)
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
@sharing(QUIET, CONFIG)
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
        search=model_folders(),
        settings=run_settings(options, context.obj),
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
@sharing(MODEL, ROLES, CHANNEL_ROLES, WORKERS, ENGINE, *TRUST)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a page.")
@sharing(CONFIG)
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
        model_folders(),
        run_settings(options, context.obj),
        options["workers"],
        options["engine"],
    )
    click.echo(json.dumps(asdict(found), indent=1) if options["as_json"] else found.page())
    context.exit(1 if found.faults else 0)


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@sharing(MODEL, ROLES, CHANNEL_ROLES, ENGINE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per window, one a line.")
@sharing(CONFIG)
@click.pass_context
def score(context: click.Context, /, **options: Any) -> None:
    """Score single recordings now and print their windows.

    The same from Python: `batchser.score("call.wav")` returns the table as a pandas DataFrame.
    """
    from batchser.errors import AudioError
    from batchser.pipeline import score_file

    settings = run_settings(options, context.obj)
    code = 0
    for path in options["files"]:
        try:
            table = score_file(path, settings, options["model"], model_folders(), options["engine"])
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
    for folder in installed(model_folders()):
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
