"""The errors that users meet. Their messages say what, where, received, expected, remedy."""

from __future__ import annotations

from collections.abc import Sequence


class BatchserError(Exception):
    """Base of every error raised on purpose by batchser."""


class ConfigError(BatchserError):
    """Usage or configuration is wrong: nothing was started (exit code 2).

    Carries every fault found, so that a user mends them all at once.
    """

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))


class AudioError(BatchserError):
    """A recording cannot be read. It costs its own row (status ``unreadable``), never the run."""


class UnknownFormatError(AudioError):
    """Nothing says how a recording is encoded: no header, no frames, no suffix."""


class BundleError(ConfigError):
    """A model bundle is missing, damaged, tampered with, or does not fit this version (exit code 2)."""
