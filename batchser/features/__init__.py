"""From windows to what a network reads: features of frames (frames.py) or statistics of windows (prosody.py)."""

from batchser.features.frames import (
    HARMONIC_HZ,
    Features,
    centre,
    compressed_spectra,
    extract,
    frames_inside,
    level_below_peak,
    log_mel,
    network_input,
    pitch_bins_hz,
    pitch_strength,
    power_to_db,
)
from batchser.features.prosody import check_libraries

__all__ = [
    "HARMONIC_HZ",
    "Features",
    "centre",
    "check_libraries",
    "compressed_spectra",
    "extract",
    "frames_inside",
    "level_below_peak",
    "log_mel",
    "network_input",
    "pitch_bins_hz",
    "pitch_strength",
    "power_to_db",
]
