"""What a process of a job minds besides its work: the driver's end, a terminal's Ctrl-C, and the time it may take."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait
from typing import Final

#: Where the stack of a process goes whose time ran out: nobody's log.
_NOWHERE: Final = os.open(os.devnull, os.O_WRONLY)

#: A process has one alarm: where somebody started a worker with several threads, they take turns with it.
ONE_AT_A_TIME: Final = threading.Lock()


def obey_driver() -> None:
    """Let this process, a child of the job's driver, ignore Ctrl-C, which reaches all of them, and end with the driver.

    However the driver ends: one that is killed tells nobody, and its children would wait for work for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def set_alarm(seconds: float) -> None:
    """End this process after so many seconds, even in the middle of a decoder's loop, unless the alarm is set anew.

    A thread of C sees to it that needs nothing of Python's; the seconds are those of a clock that no one sets back.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=_NOWHERE)


def clear_alarm() -> None:
    """Take the alarm back."""
    faulthandler.cancel_dump_traceback_later()
