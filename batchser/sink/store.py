"""Where results lie: a folder of this machine, or a prefix of an object store behind fsspec. One face for both.

Names are relative to the store's root, with ``/`` between folders. A file is whole or absent: a local one is written
beside its place, synced and moved; an object is written on this machine's disk and put in one piece.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from batchser.sink.files import SinkError, placing, sync


class Store(Protocol):
    """Files by name. It can be pickled, and opens nothing before it is used."""

    def where(self, name: str = "") -> str:
        """Say where a file is, for people."""

    def names(self, folder: str) -> list[str]:
        """List all files below a folder, sorted; none where there is no such folder."""

    def open(self, name: str) -> IO[bytes]:
        """Open a file to read and seek in; FileNotFoundError where there is none."""

    def placing(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Give a temporary path to write to; on leaving, the file appears whole under its name, replacing another."""

    def make(self, folder: str) -> None:
        """Make a folder, where there are folders: ``placing`` makes none, as it may have gone with its run."""

    def move(self, source: str, target: str) -> None:
        """Replace ``target`` by ``source``."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder of this machine; it need not exist yet."""

    root: Path

    def where(self, name: str = "") -> str:
        """See Store."""
        return str(self.root / name)

    def names(self, folder: str) -> list[str]:
        """See Store."""
        found = (self.root / folder).rglob("*")
        return sorted(path.relative_to(self.root).as_posix() for path in found if path.is_file())

    def open(self, name: str) -> IO[bytes]:
        """See Store."""
        return (self.root / name).open("rb")

    @contextlib.contextmanager
    def placing(self, name: str) -> Iterator[Path]:
        """See Store.

        Raises
        ------
        SinkError : as ``files.placing``
        """
        with placing(self.root / name) as temporary:
            yield temporary

    def make(self, folder: str) -> None:
        """See Store.

        Raises
        ------
        SinkError : the system refused
        """
        with _told_as_sink_error(self.where(folder)):
            (self.root / folder).mkdir(parents=True, exist_ok=True)

    def move(self, source: str, target: str) -> None:
        """See Store.

        Raises
        ------
        SinkError : the system refused
        """
        path = self.root / target
        with _told_as_sink_error(str(path)):
            missing = [folder for folder in path.parents if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            (self.root / source).replace(path)
            for folder in (path.parent, *(folder.parent for folder in missing)):
                sync(folder)

    def remove(self, name: str) -> None:
        """See Store; folders that are empty then go, too.

        Raises
        ------
        SinkError : the system refused
        """
        path = self.root / name
        with _told_as_sink_error(str(path)):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty, or gone
                while (path := path.parent) != self.root:
                    path.rmdir()


@dataclass(frozen=True, slots=True)
class RemoteStore:
    """Everything below an fsspec URL. Whoever may use it is told by the environment, never by us."""

    url: str

    def where(self, name: str = "") -> str:
        """See Store."""
        return f"{self.url.rstrip('/')}/{name}"

    def names(self, folder: str) -> list[str]:
        """See Store.

        Raises
        ------
        SinkError : the store does not answer
        """
        with _told_as_sink_error(self.where(folder)):
            filesystem, root = self._opened()
            filesystem.invalidate_cache()
            found = filesystem.find(f"{root}/{folder}")
            return sorted(name[len(root) + 1 :] for name in found)

    def open(self, name: str) -> IO[bytes]:
        """See Store; it is fetched whole, so that reading it cannot fail any more.

        Raises
        ------
        SinkError : the store does not answer
        """
        copy = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
        try:
            filesystem, root = self._opened()
            filesystem.invalidate_cache(f"{root}/{name}")  # others write, too
            with filesystem.open(f"{root}/{name}", "rb") as remote:
                shutil.copyfileobj(remote, copy, 2**20)
            copy.seek(0)
        except BaseException as error:
            copy.close()
            if isinstance(error, FileNotFoundError) or not isinstance(error, Exception):
                raise
            raise _sink_error(self.where(name), error) from error
        return copy

    @contextlib.contextmanager
    def placing(self, name: str) -> Iterator[Path]:
        """See Store.

        Raises
        ------
        SinkError : this machine's disk or the store refused
        """
        with tempfile.TemporaryDirectory(prefix="batchser-") as folder:
            temporary = Path(folder) / "file"
            try:
                yield temporary
            except OSError as error:  # this machine's disk
                raise _sink_error(str(temporary), error) from error
            with _told_as_sink_error(self.where(name)):
                filesystem, root = self._opened()
                filesystem.put_file(str(temporary), f"{root}/{name}")

    def make(self, folder: str) -> None:
        """See Store: objects need none."""

    def move(self, source: str, target: str) -> None:
        """See Store.

        Raises
        ------
        SinkError : the store refused
        """
        with _told_as_sink_error(self.where(target)):
            filesystem, root = self._opened()
            filesystem.cp_file(f"{root}/{source}", f"{root}/{target}")
            filesystem.rm_file(f"{root}/{source}")

    def remove(self, name: str) -> None:
        """See Store.

        Raises
        ------
        SinkError : the store refused
        """
        with _told_as_sink_error(self.where(name)), contextlib.suppress(FileNotFoundError):
            filesystem, root = self._opened()
            filesystem.rm_file(f"{root}/{name}")

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless there is one of that name; False where there is.

        Raises
        ------
        SinkError : the store refused
        """
        with _told_as_sink_error(self.where(name)):
            filesystem, root = self._opened()
            try:
                filesystem.pipe_file(f"{root}/{name}", data, mode="create")
            except FileExistsError:
                return False
        return True

    def _opened(self) -> tuple[Any, str]:
        import fsspec  # only remote results pay for it

        filesystem, root = fsspec.core.url_to_fs(self.url)
        return filesystem, root.rstrip("/")


def store_at(where: str | Path) -> Store:
    """Return the store of a local folder or an fsspec URL."""
    local = re.sub(r"^(?:file|local)://", "", str(where))
    return RemoteStore(local) if "://" in local else LocalStore(Path(local).absolute())


@contextlib.contextmanager
def _told_as_sink_error(where: str) -> Iterator[None]:
    try:
        yield
    except SinkError:
        raise
    except Exception as error:  # fsspec's drivers raise kinds of their own
        raise _sink_error(where, error) from error


def _sink_error(where: str, error: Exception) -> SinkError:
    reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return SinkError(
        f"{where}: cannot be used ({reason}); finished parts are kept: mend that and repeat the same command"
    )
