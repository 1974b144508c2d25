"""Libraries that only some users need: imported where they are, and told how to get where they are not."""

from __future__ import annotations

import importlib
from typing import Any

from batchser.errors import ConfigError


def load_extra(module: str, extra: str, need: str) -> Any:
    """Import a library of one of the package's extras.

    Parameters
    ----------
    module : its name
    extra : which of the package's extras has it
    need : what needs it, as the beginning of a sentence: ``pictures need matplotlib``

    Raises
    ------
    ConfigError : it is not installed
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{need}, which is not installed: pip install 'batchser[{extra}]'") from error
