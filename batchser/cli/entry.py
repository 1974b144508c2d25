"""The way in and out: logs, signals, and the exit codes that DESIGN.md promises."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys

import click

from batchser import __version__, logs
from batchser.errors import BatchserError, ConfigError

EXIT_CONFIG, EXIT_BROKEN, EXIT_INTERRUPTED = 2, 3, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="batchser")
def cli() -> None:
    """Turn a night's call-centre recordings into Parquet tables of emotion.

    \b
    Start here:
      batchser check RECORDINGS                       what is there, and how long will it take?
      batchser run RECORDINGS --out results.parquet   score it all
      batchser score ONE.wav                          one recording, now, on the terminal
      batchser report results.parquet --html r.html   a page of what came out
    """


def console() -> None:
    """The installed command: ``main``, and an end that says the code that ``main`` did.

    Where Parquet is read through fsspec, a thread of Arrow's may still let go of a Python object while the interpreter
    is taken down, and that aborts a process whose work is done (apache/arrow#34314): exit code 134, and cron would
    call the night broken. So it ends before that, once every other end has been called that registered itself.
    """
    codes: list[int] = []

    def end() -> None:
        if not codes:
            return
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # None or closed: nobody reads it
                stream.flush()
        os._exit(codes[0])

    atexit.register(end)  # the first to register is the last to be called
    try:
        main()
    except SystemExit as ended:
        codes.append(int(ended.code or 0))
        raise


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that DESIGN.md promises."""
    logs.configure("text")
    signal.signal(signal.SIGTERM, _interrupt)
    # NumPy's own threads gain nothing on our small matrices, and spin where other processes want the cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        code = cli.main(args=arguments, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = EXIT_CONFIG
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; a run keeps what is done: the same command, without --fresh, resumes", "")
        code = EXIT_INTERRUPTED
    except ConfigError as error:
        for fault in error.faults:
            _fail(fault)
        code = EXIT_CONFIG
    except BatchserError as error:
        _fail(str(error))
        code = EXIT_BROKEN
    except Exception:
        logging.getLogger(__name__).exception("the run broke off; the same command resumes. Please report this")
        code = EXIT_BROKEN
    sys.exit(code if isinstance(code, int) else 0)


def _fail(sentence: str, prefix: str = "error: ") -> None:
    """Say why a command ends, in the log's format."""
    if logs.current()[0] == "json":
        logs.tell(sentence, level=logging.ERROR)
    else:
        click.echo(f"{prefix}{sentence}", err=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
