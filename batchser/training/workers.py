"""Worker processes for training: windows are composed, and networks fitted, one a processor.

Two fits side by side on one thread each are done sooner than one after the other on two. With one worker everything
runs in this process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from typing import Any, Final

from batchser.scoring import start_tensorflow

Report = Callable[[str], None]
_WATCH_EVERY_S: Final = 2.0
_lines: Any = None  # a worker's way back for its lines of progress


class Workers:
    """Run calls of module-level functions, each with a ``report`` of its own as last argument, in order of the jobs."""

    def __init__(self, report: Report, pool: ProcessPoolExecutor | None, lines: Any) -> None:
        self._report, self._pool, self._lines = report, pool, lines

    def run(self, function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call ``function(*job, report)`` for every job; results in the jobs' order.

        The first error breaks off what has not begun, and is raised.
        """
        if self._pool is None:
            return [function(*job, self._report) for job in jobs]
        futures = [self._pool.submit(_call, function, job) for job in jobs]
        pending: set[Future[Any]] = set(futures)
        while pending:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
            self._tell()
            for future in done:
                future.result()  # raises what the job raised; leaving the block ends the others
        return [future.result() for future in futures]

    def _tell(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._report(self._lines.get_nowait())


@contextlib.contextmanager
def start_workers(count: int, report: Report) -> Iterator[Workers]:
    """Start ``count`` worker processes with TensorFlow on one thread each; 1: none, all is done here.

    They end with the block, also when it is left by an error or Ctrl-C, and when this process is killed.
    """
    if count <= 1:
        start_tensorflow(1)
        yield Workers(report, None, None)
        return
    context = multiprocessing.get_context("spawn")  # TensorFlow after a fork hangs
    lines = context.Queue()
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_initialise, initargs=(lines, os.getpid()))
    try:
        yield Workers(report, pool, lines)
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()  # a fit has kept its last epoch
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _initialise(lines: Any, parent: int) -> None:
    global _lines  # a process's own
    _lines = lines
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    start_tensorflow(1)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: nobody waits for what it does."""
    while os.getppid() == parent:
        time.sleep(_WATCH_EVERY_S)
    os._exit(1)


def _call(function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    return function(*job, _lines.put)
