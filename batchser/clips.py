"""``batchser clips``: the moments worth hearing, cut out of the originals, with an index as CSV and as a page.

``DIR/001-CALL-0m42s.wav`` …, ``DIR/index.csv`` and ``DIR/index.html``; a moment whose recording cannot be read has its
row there, too, and says why.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from batchser.errors import AudioError, BatchserError, ConfigError
from batchser.listening import Span, cut, encoded, original
from batchser.pages.render import asset, page
from batchser.pages.sheets import spreadsheet_safe
from batchser.results import Moment, select_moments
from batchser.results.moments import rank_of
from batchser.results.opening import Results
from batchser.settings import Headerless, LimitSettings
from batchser.sink.files import placing

_INDEX: Final = "index.csv"
_PAGE: Final = "index.html"
_SAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_CHARACTERS: Final = 60
_SAY_EVERY: Final = 100


@dataclass(frozen=True, slots=True)
class Clip:
    """A moment, and the file that holds it; else what its recording's fault is."""

    moment: Moment
    file: str = ""
    error: str = ""


def write_clips(
    results: Results,
    folder: Path,
    limits: LimitSettings,
    *,
    emotion: str | None,
    where: str,
    by: str | None,
    top: int,
    context_s: float,
    file_format: str,
    both_channels: bool,
    headerless: Headerless,
    say: Callable[[str], None],
) -> list[Clip]:
    """Cut the moments that match into a folder, and write its index; the highest first.

    Parameters
    ----------
    results, emotion, where, by, top : see ``select_moments``
    folder : made if need be; clips of an earlier selection there are refused
    limits : what recordings may ask of the machine, and where they may lie
    context_s : seconds before and after each moment
    file_format : ``wav`` or ``mp3``
    both_channels : all channels of a recording, and not the scored one alone
    headerless : how recordings without a header are read
    say : told how far it is, every hundred moments

    Raises
    ------
    ConfigError : nothing can be selected so, or the folder holds an index already
    SinkError : the folder cannot be written to
    """
    own = [name for name in results.own_columns if name not in ("path", "role", "started_at", "duration_s")]
    columns = ("path", "role", "started_at", "duration_s", *own)
    moments = select_moments(results, emotion=emotion, where=where, by=by, top=top, call_columns=columns)
    if (folder / _INDEX).exists():
        raise ConfigError(f"--to {folder}: holds the {_INDEX} of other clips; choose another folder, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BatchserError(f"--to {folder}: cannot be made ({error.strerror})") from error
    clips, num_done = [Clip(moment) for moment in moments], 0
    by_path: dict[str, list[int]] = {}  # a recording is read once for all of its moments
    for number, moment in enumerate(moments):
        by_path.setdefault(str(moment.call.get("path", "")), []).append(number)
    for path, numbers in by_path.items():
        spans = [
            Span(moments[n].start_s, moments[n].end_s, None if both_channels else moments[n].channel) for n in numbers
        ]
        missing = set(numbers)
        told = "the recording is shorter than it was when it was scored; it may have been replaced"
        try:
            recording = original(path, limits, headerless, moments[numbers[0]].call.get("duration_s"))
            for which, sound in cut(recording, spans, limits, context_s):
                number = numbers[which]
                name = _file_name(number + 1, moments[number], file_format)
                with placing(folder / name) as temporary:
                    temporary.write_bytes(encoded(sound, file_format))
                clips[number] = replace(clips[number], file=name)
                missing.discard(number)
        except AudioError as error:
            told = str(error)
        for number in missing:
            clips[number] = replace(clips[number], error=told)
        if num_done // _SAY_EVERY < (num_done + len(numbers)) // _SAY_EVERY:
            say(f"{num_done + len(numbers)} of {len(moments)} moments")
        num_done += len(numbers)
    _write_index(folder, clips, own)
    _write_page(folder, clips, what=_said(emotion, where), rank=rank_of(emotion, by))
    return clips


def _file_name(number: int, moment: Moment, file_format: str) -> str:
    """Name a clip: safe on every system, whatever the call's id is."""
    name = _SAFE.sub("_", moment.call_id).strip("._")[-_NAME_CHARACTERS:]
    minutes, seconds = divmod(int(moment.start_s), 60)
    return f"{number:03}-{name or 'call'}-{minutes}m{seconds:02}s.{file_format}"


def _said(emotion: str | None, where: str) -> str:
    parts = [f"emotion {emotion}" if emotion else "", where]
    return ", ".join(part for part in parts if part) or "most negative"


def _write_index(folder: Path, clips: Sequence[Clip], own: Sequence[str]) -> None:
    header = ["file", "call_id", "channel", "role", "start_s", "end_s", "emotion", "score", "confidence", "num_windows",
              "path", "started_at", "error", *own]  # fmt: skip
    with placing(folder / _INDEX) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([spreadsheet_safe(name) for name in header])
        for clip in clips:
            moment = clip.moment
            facts: Mapping[str, Any] = moment.call
            row = [
                clip.file, moment.call_id, moment.channel, facts.get("role"), f"{moment.start_s:.3f}",
                f"{moment.end_s:.3f}", moment.emotion, f"{moment.score:.4f}", f"{moment.confidence:.4f}",
                moment.num_windows, facts.get("path"), _text(facts.get("started_at")), clip.error,
                *(_text(facts.get(name)) for name in own),
            ]  # fmt: skip
            writer.writerow([spreadsheet_safe(cell) for cell in row])


def _text(value: Any) -> Any:
    return "" if value is None else value if isinstance(value, int | float | str) else str(value)


def _write_page(folder: Path, clips: Sequence[Clip], what: str, rank: str) -> None:
    with placing(folder / _PAGE) as temporary:
        text = page("clips.html", clips=clips, what=what, rank=rank, style=asset("style.css"))
        temporary.write_text(text, encoding="utf-8")
