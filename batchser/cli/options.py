"""What several commands share: their options, and how these become settings. The environment is read here alone."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from batchser.errors import ConfigError
from batchser.settings import (
    AUTO_ENGINE,
    DEFAULT_MODEL,
    DEFAULT_PROTOCOLS,
    ENCODINGS,
    ENGINES,
    Headerless,
    LimitSettings,
    TrustSettings,
)

if TYPE_CHECKING:
    from batchser.settings import RunSettings

Command = Callable[..., Any]


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(f"--timezone {name}: there is no such zone; expected a name like Europe/Berlin") from None


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


def sharing(*shared: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several commands share these options."""

    def decorate(command: Command) -> Command:
        for option in reversed(shared):
            command = option(command)
        return command

    return decorate


MODEL = click.option(
    "--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME_OR_DIR",
    help="An installed bundle's name (`batchser models` lists them) or a bundle's folder.",
)  # fmt: skip
ROLES = click.option(
    "--roles", default="customer,mixed", show_default=True, metavar="ROLES",
    help="Roles to score: some of agent, customer, mixed, unknown; or all. Agents are not scored unless named: in the "
    "EU inferring employees' emotions is prohibited.",
)  # fmt: skip
CHANNEL_ROLES = click.option(
    "--channel-roles", metavar="ROLES",
    help="Who speaks on which channel, e.g. agent,customer, for recordings whose manifest row states none.",
)  # fmt: skip
WORKERS = click.option(
    "--workers", type=click.IntRange(min=0), metavar="N",
    help="Worker processes. 0: all in this process. Default: one for every processor.",
)  # fmt: skip
SCHEDULER = click.option(
    "--scheduler", metavar="ADDRESS", help="Work on the Dask cluster of this scheduler (tcp://host:8786).",
)  # fmt: skip
ENGINE = click.option(
    "--engine", type=click.Choice(ENGINES), default=AUTO_ENGINE, show_default=True,
    help="What runs the networks; answers are the same. auto: TensorFlow on a GPU that it finds and for networks that "
    "only it has, else OpenVINO.",
)  # fmt: skip
CHANGES = click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE",
    help="Change the recipe: fit.epochs=3, folds=[4], protocol=random. May be repeated.",
)  # fmt: skip
CONFIG = click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), is_eager=True, expose_value=False,
    callback=_read_config, metavar="FILE.toml",
    help="Defaults for all options of this command, by name (`channel_roles = \"agent,customer\"`), and the tables "
    "[limits] and [summary].",
)  # fmt: skip
TRUST = (
    click.option(
        "--root", metavar="DIR_OR_URL",
        help="Recordings must lie in it, links and .. followed; others are unreadable. For manifests that are not "
        "yours.",
    ),
    click.option(
        "--protocols", default=",".join(DEFAULT_PROTOCOLS), show_default=True, metavar="LIST",
        help="Protocols of URLs that recordings may lie at, besides those that the command itself names.",
    ),
    click.option(
        "--max-rows", type=click.IntRange(min=1), default=TrustSettings().max_rows, show_default=True, metavar="N",
        help="A manifest of more rows is refused before it is taken in.",
    ),
)  # fmt: skip
HEADERLESS = (
    click.option(
        "--encoding", type=click.Choice(ENCODINGS),
        help="How recordings without a header are encoded, which tables do not say; all others are read as they say "
        "themselves.",
    ),
    click.option(
        "--rate-hz", type=click.IntRange(LimitSettings().min_rate_hz, LimitSettings().max_rate_hz),
        help=f"Their rate in Hz. Default: {Headerless().rate_hz}.",
    ),
)  # fmt: skip
OUT = click.argument("out", metavar="OUT")
SEGMENTS = click.option(
    "--segments", metavar="PATH", help="Where the windows of an OUT that is a file are, if they are not beside it.",
)  # fmt: skip
FROM = click.option(
    "--from", "first", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="Leave out calls of days before.",
)  # fmt: skip
TO = click.option(
    "--to", "last", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="Leave out calls of days after.",
)  # fmt: skip
TIMEZONE = click.option(
    "--timezone", default="UTC", show_default=True, metavar="NAME", callback=lambda _c, _p, name: _zone(name),
    help="Days and hours are told in it: Europe/Berlin.",
)  # fmt: skip
QUIET = click.option("--quiet", is_flag=True, help="Say nothing but errors.")
DATA = click.option(
    "--data", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR", required=True,
    help="Folder with the corpora as their owners lay them out, folds in index.csv if you have them; music/ and noise/ "
    "for the gate.",
)  # fmt: skip
DEGRADATIONS = click.option(
    "--degradations", default="all", show_default=True, metavar="all|none|NAMES",
    help="Degraded lines to score clips through as well, a comma-separated list of names; all: those that this "
    "machine's libraries can make.",
)  # fmt: skip
CLIPS_PER_FOLD = click.option(
    "--clips-per-fold", type=click.IntRange(min=0), default=400, show_default=True, metavar="N",
    help="So many clips of each fold, drawn by a seed, go through each degradation. 0: all.",
)  # fmt: skip
PICTURES = click.option(
    "--pictures", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Draw confusion matrices, reliability diagram and learning curves into this folder.",
)  # fmt: skip
CALLS = click.option(
    "--calls", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR", multiple=True,
    help="Folder of composed calls (manifest.csv, turns.csv), to be scored window by window by the model that never "
    "heard its customers: those of one fold. May be given several times; the gate is a stranger to one fold alone.",
)  # fmt: skip


def headerless_of(encoding: str | None, rate_hz: int | None) -> Headerless:
    """Return what the options HEADERLESS say.

    Raises
    ------
    ConfigError : a rate without an encoding
    """
    if rate_hz is not None and encoding is None:
        raise ConfigError(f"--rate-hz {rate_hz}: expected --encoding with it; what has a header has its own rate")
    return Headerless(encoding, rate_hz or Headerless().rate_hz)


def model_folders() -> tuple[Path, ...]:
    """Folders of the user's own bundles: BATCHSER_MODELS, several divided as in PATH."""
    return tuple(Path(folder) for folder in os.environ.get("BATCHSER_MODELS", "").split(os.pathsep) if folder)


def trust_settings(options: Mapping[str, Any]) -> TrustSettings:
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


def run_settings(options: Mapping[str, Any], tables: Mapping[str, Any] | None) -> RunSettings:
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
        built["limits"] = replace(built["limits"], trust=trust_settings(options))
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
