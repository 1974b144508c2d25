"""Augmentation: voices, rooms, what sounds behind them, and telephone lines.

``chain`` draws what a training window meets, as ``settings`` allow: ``voices`` change pitch and tempo, ``line`` and
``codecs`` are the line, ``sounds`` the signals and noises made by code.
"""

from batchser.training.augment.chain import Sounds, draw_voice, read_sounds, telephone
from batchser.training.augment.line import add_noise, scale_to
from batchser.training.augment.settings import AugmentSettings
from batchser.training.augment.voices import Voice, change_speed, load_audiomentations

__all__ = [
    "AugmentSettings",
    "Sounds",
    "Voice",
    "add_noise",
    "change_speed",
    "draw_voice",
    "load_audiomentations",
    "read_sounds",
    "scale_to",
    "telephone",
]
