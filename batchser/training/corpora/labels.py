"""One label space for all corpora, and the words and codes of each owner that stand for it.

Every mapping is in this file. ``boredom`` is no label of ours: it is dropped, or becomes one by ``LabelOptions``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from batchser.errors import ConfigError

LABELS: Final = ("angry", "calm", "disgust", "fearful", "happy", "neutral", "sad", "surprised")
#: What RAVDESS, CREMA-D, TESS, SAVEE, MELD and EMO-DB all have.
SIX_LABELS: Final = ("angry", "disgust", "fearful", "happy", "neutral", "sad")
BOREDOM: Final = "boredom"

RAVDESS_CODES: Final[Mapping[str, str]] = {
    "01": "neutral", "02": "calm", "03": "happy", "04": "sad",
    "05": "angry", "06": "fearful", "07": "disgust", "08": "surprised",
}  # fmt: skip
CREMA_D_CODES: Final[Mapping[str, str]] = {
    "ANG": "angry", "DIS": "disgust", "FEA": "fearful", "HAP": "happy", "NEU": "neutral", "SAD": "sad",
}  # fmt: skip
#: The letters under which CREMA-D's listeners' votes are counted.
CREMA_D_VOTES: Final[Mapping[str, str]] = {
    "A": "angry", "D": "disgust", "F": "fearful", "H": "happy", "N": "neutral", "S": "sad",
}  # fmt: skip
SAVEE_CODES: Final[Mapping[str, str]] = {
    "a": "angry", "d": "disgust", "f": "fearful", "h": "happy", "n": "neutral", "sa": "sad", "su": "surprised",
}  # fmt: skip
#: The first letter of the German word: Wut, Langeweile, Ekel, Angst, Freude, Trauer, neutral.
EMO_DB_CODES: Final[Mapping[str, str]] = {
    "W": "angry", "L": BOREDOM, "E": "disgust", "A": "fearful", "F": "happy", "T": "sad", "N": "neutral",
}  # fmt: skip
#: Whole words: TESS's (``ps`` is its pleasant surprise), MELD's, and what a manifest of one's own may say.
WORDS: Final[Mapping[str, str]] = {label: label for label in LABELS} | {
    "anger": "angry",
    "bored": BOREDOM,
    "boredom": BOREDOM,
    "calmness": "calm",
    "disgusted": "disgust",
    "fear": "fearful",
    "happiness": "happy",
    "joy": "happy",
    "pleasant_surprise": "surprised",
    "pleasant_surprised": "surprised",
    "ps": "surprised",
    "sadness": "sad",
    "surprise": "surprised",
}


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """What becomes of labels that not every model has; what they drop is counted, not silent.

    Attributes
    ----------
    boredom
        The label that EMO-DB's boredom becomes; None drops it.
    six
        Keep only the six common labels: ``calm`` and ``surprised`` are dropped, unless ``merge`` moves them first.
    merge
        Pairs of labels (from, to), such as ``(("calm", "neutral"),)``; each clip is moved once at most.

    Raises
    ------
    ConfigError
        If a name is no label, or one label is merged twice.
    """

    boredom: str | None = None
    six: bool = False
    merge: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        expected = f"expected one of {', '.join(LABELS)}"
        faults = []
        if self.boredom is not None and self.boredom not in LABELS:
            faults.append(f"labels: boredom: received {self.boredom!r}, {expected}")
        named = [label for pair in self.merge for label in pair]
        faults += [f"labels: merge: received {label!r}, {expected}" for label in named if label not in LABELS]
        sources = [pair[0] for pair in self.merge]
        faults += [
            f"labels: merge: {label!r} is merged {sources.count(label)} times, expected once"
            for label in sorted({s for s in sources if sources.count(s) > 1})
        ]
        if faults:
            raise ConfigError(faults)

    def label_of(self, meant: str) -> str | None:
        """Give the label of a clip whose owner means ``meant`` (a value of this file's mappings); None drops it."""
        label = self.boredom if meant == BOREDOM else meant
        label = dict(self.merge).get(label, label) if label is not None else None
        return None if self.six and label not in SIX_LABELS else label

    def votes_of(self, votes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
        """Count votes under the labels they become, alphabetical; those for a dropped label are not counted."""
        counts: dict[str, int] = {}
        for meant, count in votes.items():
            label = self.label_of(meant)
            if label is not None and count:
                counts[label] = counts.get(label, 0) + count
        return tuple(sorted(counts.items()))
