"""Where recordings and manifests lie: folders, globs and names, on this machine or at an fsspec URL.

The half of ``manifest`` that knows paths. Local paths become absolute, with links kept; URLs stay as written.
"""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import fsspec

from batchser.errors import ConfigError
from batchser.records import AUDIO_SUFFIXES

#: ``s3://`` or, chained, ``simplecache::s3://``.
_URL: Final = re.compile(r"(?:[A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://")


@dataclass(slots=True)
class Files:
    """Recordings found without a manifest: path → its name relative to ``root``."""

    root: str
    found: dict[str, str] = field(default_factory=dict)


def find_files(given: str) -> Files:
    """Find what a folder, a glob or a file name stands for, sorted.

    A folder gives every visible file below it with one of AUDIO_SUFFIXES; a pattern that names its suffix, and a file
    that is named, are taken as they are.

    Raises
    ------
    FileNotFoundError
        If there is nothing of that name.
    ConfigError
        If it is there and holds no recording.
    """
    return _url_files(given) if is_url(given) else _local_files(given)


def is_url(path: str) -> bool:
    """Say whether this is an fsspec URL."""
    return _URL.match(path) is not None


def is_pattern(given: str) -> bool:
    """Say whether this is a glob; a local file may have brackets in its name."""
    if is_url(given):
        return glob.has_magic(split_url(given)[1])
    return glob.has_magic(given) and not os.path.lexists(given)


def identity(path: str, real_folders: dict[str, str]) -> str:
    """Name a file alike however it was reached: through a linked folder, as a path or as a ``file://`` URL.

    A link to a file is another name, and so another recording. ``real_folders`` is filled and reused: resolving
    every file would take longer than listing it.
    """
    local = re.sub(r"^(?:file|local)://(?=/)", "", path)
    if is_url(local):
        return re.sub(r"(?<!:)//+", "/", local)
    folder, name = posixpath.split(local)
    if folder not in real_folders:
        real_folders[folder] = os.path.realpath(folder)
    return posixpath.join(real_folders[folder], name)


def _local_files(given: str) -> Files:
    """Find the recordings of a folder, a glob or a file name on this machine, sorted."""
    path = absolute(given)
    if Path(path).is_dir():
        return _searched(given, path, sorted(_walk(Path(path))))
    if os.path.lexists(path):  # pathlib's exists(follow_symlinks=False) came with Python 3.12
        return Files(posixpath.dirname(path), {path: posixpath.basename(path)})
    if not is_pattern(given):
        raise FileNotFoundError(given)
    # Not pathlib's glob: it takes hidden files, and follows links or not by version.
    matches = [absolute(match) for match in glob.glob(given, recursive=True)]  # noqa: PTH207
    return _searched(given, absolute(_fixed_root(given)), sorted(m for m in matches if not Path(m).is_dir()))


def _url_files(given: str) -> Files:
    """Find the recordings of a folder, a glob or a file at an fsspec URL, sorted."""
    opening, path, closing = split_url(given)
    filesystem, place = fsspec.core.url_to_fs(given)
    if filesystem.isfile(place):
        return Files(opening + posixpath.dirname(path), {given: posixpath.basename(path)})
    if filesystem.isdir(place):
        root, found = path.rstrip("/"), filesystem.find(place)
    elif glob.has_magic(path):
        root, detail = _fixed_root(path), filesystem.glob(place, detail=True)
        found = [name for name, info in detail.items() if info["type"] != "directory"]
    else:
        raise FileNotFoundError(given)
    place = fsspec.core.url_to_fs(opening + root + closing)[1].rstrip("/")
    relatives = [name[len(place) :].lstrip("/") for name in sorted(found)]
    shown = [name for name in relatives if not any(part.startswith(".") for part in name.split("/"))]
    return _searched(given, opening + root, [inside(opening + root, name) for name in shown], closing)


def _searched(given: str, root: str, paths: list[str], closing: str = "") -> Files:
    """Keep what is audio by its suffix, or by the suffix that the pattern itself names."""
    named = suffix_of(split_url(given)[1]) if is_pattern(given) else ""
    if not named or glob.has_magic(named):
        paths = [path for path in paths if suffix_of(path) in AUDIO_SUFFIXES]
        sought = f"no audio found; looked for {' '.join(sorted(AUDIO_SUFFIXES))}, name other files one by one"
    else:
        sought = "the pattern matches no file"
    if not paths:
        raise ConfigError(f"{given}: {sought}")
    beginning = len(inside(root, ""))
    return Files(root, {path + closing: path[beginning:] for path in paths})


def _walk(folder: Path) -> Iterator[str]:
    """Yield every visible file below a folder, in no particular order.

    Links to folders are followed, each folder is entered once. A folder that cannot be listed raises: recordings must
    not go missing without a word.
    """
    waiting, entered = [str(folder)], set()
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        if real in entered:
            continue
        entered.add(real)
        with os.scandir(current) as entries:
            visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name, reverse=True)
        waiting += [entry.path for entry in visible if entry.is_dir()]
        yield from (entry.path for entry in visible if not entry.is_dir())


def split_url(url: str) -> tuple[str, str, str]:
    """Split a URL into what opens it (``s3://``), its path, and what closes a chained one (``::s3://b/x.zip``).

    The query of a web address is part of neither: what lies beside that address has another one.
    """
    match = _URL.match(url)
    opening = match.group() if match else ""
    path, mark, closing = url[len(opening) :].partition("::") if opening else (url, "", "")
    return opening, path.partition("?")[0] if opening.endswith(("http://", "https://")) else path, mark + closing


def inside(folder: str, name: str) -> str:
    """Join, also below a bare ``memory://`` or ``/``."""
    return folder + name if folder.endswith("/") else f"{folder}/{name}"


def absolute(path: str, folder: str = "") -> str:
    """Make a local path absolute. Links stay; ``..`` stays too, since behind a link it leads elsewhere."""
    joined = posixpath.join(folder or str(Path.cwd()), path)
    return joined.rstrip("/") if ".." in joined.split("/") else posixpath.normpath(joined)


def _fixed_root(pattern: str) -> str:
    """Find the folder before a pattern's first wildcard."""
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:fixed]) or ("/" if fixed else "")


def suffix_of(path: str) -> str:
    """Cut out the suffix, with its dot and in small letters."""
    return posixpath.splitext(path)[1].lower()
