"""What is wrong with clips before anything is trained on them: unreadable, silent, twice there, or contradictory.

Headers are read of all clips. Only clips of one corpus and one length are listened to, and but for their beginning
only those that begin alike: compared is what is heard, as copies of a clip may be packed into different bytes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from batchser.audio import probe
from batchser.errors import AudioError
from batchser.settings import LimitSettings
from batchser.training.corpora.clips import Clip, Fault, check_audio, read_clip, unreadable

_BEGINNING_S: Final = 0.3


def check_clips(clips: Iterable[Clip]) -> tuple[list[Clip], list[Fault]]:
    """Keep the clips that can be read and whose sound has one label; the first of several alike.

    Clips of one sound under several labels are all dropped: none of the labels can be called right.

    Returns
    -------
    tuple of list
        The clips kept, by corpus, path and place in it, and a fault for each other one.
    """
    faults: list[Fault] = []
    lengths: dict[Hashable, list[tuple[Clip, int]]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: (clip.corpus, clip.path, clip.start_s, clip.channel or 0)):
        try:
            rate_hz, length_s = _header(clip)
        except AudioError as error:
            faults.append(unreadable(clip, error))
        else:
            lengths[clip.corpus, rate_hz, round(length_s, 3)].append((clip, rate_hz))
    kept = []
    for alike in lengths.values():
        own, wrong = _without_copies(alike)
        kept += own
        faults += wrong
    return sorted(kept, key=lambda clip: (clip.corpus, clip.path, clip.start_s, clip.channel or 0)), faults


def _header(clip: Clip) -> tuple[int, float]:
    """Rate and length of a clip by its recording's header; a length that only decoding tells counts as 0."""
    info = probe(clip.recording, LimitSettings())
    if clip.channel is not None and clip.channel >= info.num_channels:
        raise AudioError(f"received channel {clip.channel}, expected one of 0 to {info.num_channels - 1}")
    if info.duration_s is None:
        return info.rate_hz, 0.0
    if clip.start_s >= info.duration_s:
        raise AudioError(f"the clip begins at {clip.start_s:g} s, the recording ends at {info.duration_s:g} s")
    end_s = info.duration_s if clip.end_s is None else min(clip.end_s, info.duration_s)
    return info.rate_hz, end_s - clip.start_s


def _without_copies(clips: Sequence[tuple[Clip, int]]) -> tuple[list[Clip], list[Fault]]:
    """Listen to clips of one length as far as it takes to tell them apart."""
    if len(clips) == 1:
        return [clips[0][0]], []
    kept, faults = [], []
    begins: dict[str, list[tuple[Clip, int]]] = defaultdict(list)
    for clip, rate_hz in clips:
        end_s = clip.start_s + _BEGINNING_S
        beginning = replace(clip, end_s=end_s if clip.end_s is None else min(end_s, clip.end_s))
        try:
            begins[_sound(beginning, rate_hz)].append((clip, rate_hz))
        except AudioError as error:
            faults.append(unreadable(clip, error))
    for alike in begins.values():
        if len(alike) == 1:
            kept.append(alike[0][0])
            continue
        sounds: dict[str, list[Clip]] = defaultdict(list)
        for clip, rate_hz in alike:
            try:
                samples = read_clip(clip, rate_hz)
            except AudioError as error:
                faults.append(unreadable(clip, error))
                continue
            silent = check_audio(clip, samples)
            if silent:
                faults.append(silent)
            else:
                sounds[hashlib.sha256(samples.tobytes()).hexdigest()].append(clip)
        for same in sounds.values():
            own, wrong = _of_one_sound(same)
            kept += own
            faults += wrong
    return kept, faults


def _sound(clip: Clip, rate_hz: int) -> str:
    """Stand for what a clip sounds like."""
    return hashlib.sha256(read_clip(clip, rate_hz).tobytes()).hexdigest()


def _of_one_sound(clips: Sequence[Clip]) -> tuple[list[Clip], list[Fault]]:
    """Keep the first of clips that sound the same, or none where their labels differ."""
    if len({clip.emotion for clip in clips}) == 1:
        first, *others = clips
        detail = f"sounds the same as {first.path.name}"
        return [first], [Fault(clip.corpus, clip.place, "duplicate", detail) for clip in others]
    faults = []
    for clip in clips:
        named = [f"{other.path.name} ({other.emotion})" for other in clips if other is not clip]
        detail = f"{clip.emotion}, and sounds the same as {', '.join(named)}"
        faults.append(Fault(clip.corpus, clip.place, "contradictory", detail))
    return [], faults
