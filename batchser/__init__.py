"""batchser: a batch job that turns call-centre recordings into Parquet tables of emotion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchser.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    import os

    import pandas as pd

__all__ = ["__version__", "score"]
__version__ = "0.1.0"


def score(
    path: str | os.PathLike[str],
    model: str = DEFAULT_MODEL,
    roles: str = "customer,mixed",
    channel_roles: str | None = None,
) -> pd.DataFrame:
    """Score one recording now and return its windows.

    Parameters
    ----------
    path : path or fsspec URL of one recording, any format the job reads
    model : an installed bundle's name (see ``batchser models``) or a bundle's folder
    roles : which roles are scored, comma-separated, or ``"all"``
    channel_roles : who speaks on each channel, e.g. ``"agent,customer"``; a mono recording is ``mixed`` unless stated

    Returns
    -------
    DataFrame with the columns of the segments table (see the README), one row per window of every channel.

    Raises
    ------
    ConfigError : unknown model, damaged bundle or unknown role
    AudioError : the recording cannot be read; the message says what was found and what to do
    """
    from batchser.pipeline import parse_roles, score_file
    from batchser.settings import RunSettings

    settings = RunSettings(
        roles=parse_roles(roles, what="roles", allow_all=True),
        channel_roles=parse_roles(channel_roles, what="channel_roles") if channel_roles else None,
    )
    return score_file(path, settings, model)
