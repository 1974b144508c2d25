"""Several files of a store changed as one: staged, then listed in a journal, then moved.

A journal that is there is a commit under way: whoever comes next finishes it (``replay``), as each of its steps may be
done twice. Before it is there, nothing of what readers see has changed.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from batchser.sink.store import Store

#: The folder of work in progress; readers pass over names that begin with ``_``.
WORK: Final = "_batchser/work"
JOURNAL: Final = f"{WORK}/commit.json"
#: Of whose work it is: written when all else that it takes is there.
RUN: Final = f"{WORK}/run.json"


class Commit:
    """Files to be replaced and removed; nothing happens to them before ``publish``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._id = uuid.uuid4().hex  # no other's file is taken for one of ours, should two ever be at work
        self._moves: list[tuple[str, str]] = []
        self._removes: list[str] = []

    @contextlib.contextmanager
    def placing(self, target: str) -> Iterator[Path]:
        """Give a temporary path to write what ``target`` is to be.

        Raises
        ------
        SinkError : it cannot be written
        """
        staged = f"{WORK}/staged-{self._id}-{len(self._moves):06d}"
        with self._store.placing(staged) as temporary:
            yield temporary
        self._moves.append((staged, target))

    def remove(self, target: str) -> None:
        """Let a file go."""
        self._removes.append(target)

    def publish(self, check: Callable[[], None]) -> None:
        """Make all changes, in the order in which they were told, removals last; then clear the work folder.

        ``check`` raises where the place is not held any more: nothing is changed then.

        Raises
        ------
        SinkError : the store refused; ``replay`` goes on
        """
        check()
        with self._store.placing(JOURNAL) as temporary:
            temporary.write_text(json.dumps({"moves": self._moves, "removes": self._removes}), encoding="utf-8")
        replay(self._store)


def replay(store: Store) -> bool:
    """Finish a commit whose journal is there; False where there is none.

    Raises
    ------
    SinkError : the store refused; it can be tried again
    """
    try:
        with store.open(JOURNAL) as file:
            journal = json.load(file)
    except FileNotFoundError:
        return False
    there = set(store.names(WORK))
    for staged, target in journal["moves"]:
        if staged in there:  # else it was moved already
            store.move(staged, target)
    for target in journal["removes"]:
        store.remove(target)
    clear_work(store)
    return True


def clear_work(store: Store) -> None:
    """Remove all work in progress: first what says that there is some, and the journal last.

    Raises
    ------
    SinkError : the store refused
    """
    store.remove(RUN)
    for name in store.names(WORK):
        if name != JOURNAL:
            store.remove(name)
    store.remove(JOURNAL)
