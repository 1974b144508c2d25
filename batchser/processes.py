"""What a process of a job minds besides its work: the driver's end, Ctrl-C, the time and the memory it may take."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Final

from batchser.settings import available_memory_bytes

#: Where the stack of a process goes whose time ran out: nobody's log.
_NOWHERE: Final = os.open(os.devnull, os.O_WRONLY)

#: What any process may weigh that reads recordings: several times what one of them should make it.
_MOST_BYTES: Final = 4 * 2**30
#: Of that, where it is ended, so that the limit itself is never passed.
END_AT: Final = 0.95
#: Three counts of pages on Linux, the second of those that are in memory; other systems have none.
_MEMORY: Final = Path("/proc/self/statm")
_LOOK_S: Final = 0.02

#: A process has one alarm: where somebody started a worker with several threads, they take turns with it.
ONE_AT_A_TIME: Final = threading.Lock()


def memory_limit_bytes(processes: int) -> int:
    """Return what each of so many processes that read recordings may weigh."""
    return min(_MOST_BYTES, available_memory_bytes() // processes)


def obey_driver(most_bytes: int) -> None:
    """Let this process, a child of the job's driver, ignore Ctrl-C, which reaches all of them, and end with the driver.

    However the driver ends: one that is killed tells nobody, and its children would wait for work for ever. And it
    ends before it weighs ``most_bytes``.
    """
    stay_below(most_bytes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def stay_below(most_bytes: int) -> None:
    """End this process before it weighs so much, from within: who looks from outside may be late by gigabytes.

    It looks fifty times a second, as Python's lock lets it: one huge piece taken at once passes the limit before it is
    seen. Linux only: elsewhere this does nothing, and Dask's nanny alone looks after its worker.
    """
    if _MEMORY.exists():
        most_pages = int(END_AT * most_bytes) // os.sysconf("SC_PAGE_SIZE")
        threading.Thread(target=_watch_memory, args=(most_pages,), daemon=True).start()


def _watch_memory(most_pages: int) -> None:
    with _MEMORY.open("rb", buffering=0) as counts:
        while int(counts.read().split()[1]) <= most_pages:
            time.sleep(_LOOK_S)
            counts.seek(0)
    os._exit(1)


def set_alarm(seconds: float) -> None:
    """End this process after so many seconds, even in the middle of a decoder's loop, unless the alarm is set anew.

    A thread of C sees to it that needs nothing of Python's; the seconds are those of a clock that no one sets back.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=_NOWHERE)


def clear_alarm() -> None:
    """Take the alarm back."""
    faulthandler.cancel_dump_traceback_later()
