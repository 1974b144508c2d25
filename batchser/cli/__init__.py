"""The command line: parse, call, exit code. Heavy imports live inside the commands, so that --help is quick.

``entry`` is the way in and out, ``options`` what commands share; the others have the commands.
"""

from batchser.cli import looking, scoring, training  # noqa: F401  each adds its commands
from batchser.cli.entry import cli, console, main

__all__ = ["cli", "console", "main"]
