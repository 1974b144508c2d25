"""The Dask cluster that recordings are scored and trials fitted on: this machine's own, or one by its address."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from batchser import logs, processes
from batchser.errors import BatchserError, ConfigError

_CONNECT_S: Final = 15.0
_START_TRIES: Final = 3
#: Dask's own default is a MALLOC_TRIM_THRESHOLD_ that makes glibc map and clear every array anew, which takes as much
#: time as all our arithmetic and saves no memory at the peak. These keep what one batch leaves for the next.
WORKER_ENVIRONMENT: Final = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), 1),
    "MALLOC_MMAP_THRESHOLD_": 2**25,  # the most that every glibc takes
    "MALLOC_TRIM_THRESHOLD_": 2**28,
}

_CONFIG: Final = {
    # A task whose process died comes back at once; whom to blame is decided by the caller, not by the scheduler.
    "distributed.scheduler.allowed-failures": 0,
    # A worker's nanny starts it again. By default the cluster drops both where the worker happens to be away 15 s after
    # a death, as one that dies several times may be; with the last one gone a run would wait for ever.
    "distributed.deploy.lost-worker-timeout": "1 day",
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    "distributed.worker.profile.enabled": False,  # it looks at every worker's stack 100 times a second
    # A worker holds no results that it could spill; past its limit it ends, and its recording is to blame.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": processes.END_AT,
}


class ClusterError(BatchserError):
    """There is no cluster to work on (exit code 3); what is done is kept, the same command resumes."""


@contextmanager
def open_cluster(scheduler: str | None, workers: int, say: Callable[[str], None]) -> Iterator[Any]:
    """Give a client of the scheduler at this address, or of an own local cluster: one process a core, one thread each.

    Parameters
    ----------
    scheduler : its address; None starts a cluster on this machine, which ends with the block
    workers : processes of the own cluster
    say : takes a line of progress

    Raises
    ------
    ConfigError : no scheduler answers at the address
    ClusterError : worker processes cannot be started here
    """
    import dask
    from distributed import Client

    _quiet_distributed()
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=_CONNECT_S)
        except (OSError, TimeoutError, ValueError) as error:
            raise ConfigError(
                f"--scheduler {scheduler}: no Dask scheduler answers there ({error}). Start one with `dask scheduler`, "
                "or leave the option out to use this machine"
            ) from error
        with client:
            yield client
        return
    say(f"starting {workers} worker processes")
    with dask.config.set(_CONFIG), _own_cluster(workers) as cluster, Client(cluster) as client:
        _prepare_workers(client)
        yield client


def _own_cluster(workers: int) -> Any:
    """Start processes here. One that dies before it is ready has no recording to blame, and is forgiven a few times."""
    from distributed import LocalCluster

    for tries in range(_START_TRIES):
        try:
            return LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                memory_limit=processes.memory_limit_bytes(workers),
                processes=True,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
        except RuntimeError as error:
            failed = error
            time.sleep(2**tries)
    raise ClusterError(
        f"worker processes cannot be started here ({failed}); what is done is kept: give them more memory, or use "
        "fewer (--workers), and repeat the same command"
    ) from failed


def num_workers(client: Any) -> int:
    """Count the workers that the cluster has now."""
    return len(client.scheduler_info(n_workers=-1).get("workers", ()))


def _prepare_workers(client: Any) -> None:
    """Let workers log as the driver does, keep their limit, and ignore Ctrl-C, which reaches every process.

    The nanny that looks after a worker's memory lives in the driver. A recording that eats memory takes gigabytes a
    second, and with busy cores the nanny may not look for as long; so each worker looks at itself, too.
    """
    from distributed import WorkerPlugin

    log_format, run_id = logs.current()

    class Prepare(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            logs.configure(log_format, run_id)
            if worker.memory_manager.memory_limit:
                processes.stay_below(worker.memory_manager.memory_limit)

    for tries in range(_START_TRIES):
        try:
            client.register_plugin(Prepare(), name="batchser")
        except OSError:  # a worker died while it was told; the scheduler tells those that come after it
            time.sleep(2**tries)
        else:
            return


def _quiet_distributed() -> None:
    """Keep the cluster's comings and goings out of the job's log: what matters of them is told here."""
    for name in ("distributed", *logging.root.manager.loggerDict):
        if name.split(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)
