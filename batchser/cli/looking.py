"""Looking at results and listening: report, clips, dashboard."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import click

from batchser.cli.entry import cli
from batchser.cli.options import (
    CHANNEL_ROLES,
    FROM,
    HEADERLESS,
    MODEL,
    OUT,
    SEGMENTS,
    TIMEZONE,
    TO,
    TRUST,
    headerless_of,
    model_folders,
    run_settings,
    sharing,
    trust_settings,
)
from batchser.errors import ConfigError
from batchser.settings import DEFAULT_PROTOCOLS, TrustSettings


@cli.command()
@sharing(OUT, SEGMENTS)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE",
              help="The page to write; one that is there is replaced.")  # fmt: skip
@sharing(FROM, TO, TIMEZONE)
def report(
    out: str, segments: str | None, html: Path, first: datetime | None, last: datetime | None, timezone: ZoneInfo
) -> None:
    """Write one page of a run's results that needs no network: for a screen, a phone, or paper.

    OUT is what the run had as --out. The page has the night in numbers, the calls that need a person first, how calls
    sound by queue, hour and the manifest's other columns, what could not be scored, and a table of all calls.
    """
    from batchser.pages.report import write_report
    from batchser.sink.files import placing

    if not html.absolute().parent.is_dir():
        raise ConfigError(f"--html {html}: there is no folder {html.absolute().parent}")
    days = (first.date() if first else None, last.date() if last else None)
    if days[0] and days[1] and days[0] > days[1]:
        raise ConfigError(f"--from {days[0]} --to {days[1]}: expected the earlier day first")
    text, num_calls = write_report(out, segments, timezone, model_folders(), *days)
    with placing(html.absolute()) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if not num_calls:
        click.echo(f"{out}: there are no calls of these days; the page says so", err=True)
    click.echo(html)


@cli.command()
@sharing(OUT, SEGMENTS)
@click.option("--emotion", metavar="LABEL", help="Windows that say so and are not unsure, by its probability.")
@click.option("--where", default="", metavar="CONDITION",
              help="Scored windows, and their calls, that meet this: \"negativity > 0.8 and queue == 'billing'\". "
              "Names are those of the tables' columns, in backticks if they have blanks. negativity is the window's; a "
              "call's column that windows have, too, is call_emotion, call_negativity and so on.")  # fmt: skip
@click.option(
    "--by", metavar="COLUMN", help="A window's number to rank by. Default: the emotion's p_…, else negativity."
)
@click.option("--top", type=click.IntRange(1, 10_000), default=20, show_default=True, metavar="N",
              help="How many moments; windows that follow each other are one.")  # fmt: skip
@click.option("--to", "folder", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR",
              help="Where clips, index.csv and index.html go.")  # fmt: skip
@click.option("--context", type=click.FloatRange(0, 60), default=1.0, show_default=True, metavar="SECONDS",
              help="What is heard before and after each moment.")  # fmt: skip
@click.option("--format", "file_format", type=click.Choice(("wav", "mp3")), default="wav", show_default=True,
              help="What clips are written as.")  # fmt: skip
@click.option("--channels", type=click.Choice(("scored", "all")), default="scored", show_default=True,
              help="Hear the scored channel alone, or all of them, the agent's too.")  # fmt: skip
@sharing(*HEADERLESS, *TRUST[:2])
@click.pass_context
def clips(context: click.Context, /, **options: Any) -> None:
    """Cut the moments worth hearing out of the recordings: the angriest, the most negative, or any others.

    OUT is what a run had as --out; its paths must still lead to the recordings. Exit code 1 if some cannot be read:
    their rows in index.csv say why.
    """
    from batchser.clips import write_clips
    from batchser.progress import timed
    from batchser.results import open_results
    from batchser.settings import LimitSettings

    names = ("emotion", "where", "by", "top", "file_format")
    made = write_clips(
        open_results(options["out"], options["segments"]),
        options["folder"],
        LimitSettings(trust=trust_settings({**options, "inputs": (), "max_rows": TrustSettings().max_rows})),
        context_s=options["context"],
        both_channels=options["channels"] == "all",
        headerless=headerless_of(options["encoding"], options["rate_hz"]),
        say=timed(quiet=False),
        **{name: options[name] for name in names},
    )
    faults = [clip for clip in made if clip.error]
    told = Counter((clip.moment.call_id, clip.error) for clip in faults)
    for (call_id, error), count in told.most_common(5):
        click.echo(f"  {call_id}{f' ({count} moments)' if count > 1 else ''}: {error}", err=True)
    if not made:
        click.echo("no scored window meets the conditions", err=True)
    click.echo(f"clips: {len(made) - len(faults)} of {len(made)} moments\n{options['folder'] / 'index.html'}")
    context.exit(1 if faults else 0)


@cli.command()
@sharing(OUT, SEGMENTS)
@click.option("--root", metavar="DIR_OR_URL",
              help="Where recordings lie: those below it may be heard and seen, links and .. followed. Without it none "
              "are opened.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path, dir_okay=False), default=Path("labels.csv"),
              show_default=True, metavar="FILE",
              help="What listeners say goes here: a manifest to train with, .csv or .parquet.")  # fmt: skip
@click.option(
    "--speaker-column",
    metavar="NAME",
    help="The manifest's column that names the caller, for labels. Default: each call is a speaker of its own.",
)
@sharing(*HEADERLESS, MODEL, CHANNEL_ROLES, TIMEZONE)
@click.option("--listen", default="127.0.0.1:8050", show_default=True, metavar="HOST:PORT",
              help="Where it answers. Anybody who reaches it sees and hears everything: other than on this machine, "
              "let a proxy with your company's sign-on stand in front.")  # fmt: skip
@click.option("--host-name", "host_names", multiple=True, metavar="NAME",
              help="Another name under which it is called: that of the proxy. May be repeated.")  # fmt: skip
@click.option("--max-upload", type=click.IntRange(1, 4096), default=200, show_default=True, metavar="MB",
              help="What an uploaded recording may have.")  # fmt: skip
def dashboard(
    out: str, segments: str | None, root: str | None, labels: Path, speaker_column: str | None, encoding: str | None,
    rate_hz: int | None, model: str, channel_roles: str | None, timezone: ZoneInfo, listen: str,
    host_names: tuple[str, ...], max_upload: int,
) -> None:  # fmt: skip
    """Show a run's results in the browser: filter, look, listen, label; and score a recording of your own.

    OUT is what the run had as --out; a dataset that grows is read anew for every page. Needs batchser[dashboard]. It
    has no passwords: it answers on this machine alone, under the names that it is told, until told otherwise.
    """
    from batchser.extras import load_extra

    load_extra("flask", "dashboard", "the dashboard needs Flask")
    load_extra("waitress", "dashboard", "the dashboard needs waitress")
    from batchser.dashboard.serve import Address, serve

    settings = run_settings({"roles": "customer,mixed", "channel_roles": channel_roles}, None)
    limits = None
    if root is not None:
        trusted = trust_settings({"root": root, "protocols": ",".join(DEFAULT_PROTOCOLS), "inputs": (), "max_rows": 1})
        limits = replace(settings.limits, trust=trusted)
    serve(
        out=out, segments=segments, zone=timezone, search=model_folders(), listen_limits=limits,
        headerless=headerless_of(encoding, rate_hz), labels=labels, speaker_column=speaker_column, model=model,
        settings=settings, address=Address.parsed(listen), host_names=host_names,
        most_upload_bytes=max_upload * 2**20, say=lambda line: click.echo(line, err=True),
    )  # fmt: skip
