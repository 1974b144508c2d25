"""Any audio format → float32 blocks per channel at the model's rate, in bounded memory.

``probe`` reads headers only, ``open_audio`` streams, ``channels_carry_same_signal`` finds fake stereo, ``open_source``
gives the bytes for all of them to read, and their sha256. The only error they raise is ``AudioError``, in one sentence
that says what was found, what was expected and what to do.

A recording is *truncated* when its header and its file disagree (the header promises more than the file holds, was
never finished, or hides bytes behind a too-small size), or when decoding stopped before the promised end. What can be
decoded is decoded all the same.
"""

from batchser.audio.reader import AudioReader, channels_carry_same_signal, open_audio, probe
from batchser.audio.source import Source, check_trusted, open_source, schemes_of

__all__ = [
    "AudioReader",
    "Source",
    "channels_carry_same_signal",
    "check_trusted",
    "open_audio",
    "open_source",
    "probe",
    "schemes_of",
]
