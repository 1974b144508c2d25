"""Protocols: which clips a model is trained on and which ones measure it. A score means nothing without its protocol.

A protocol deals the clips into splits. One model is trained for each, and is measured on the split's test clips. A
split is named by what it tests on: a fold (``0``), corpora (``TESS``, ``SAVEE+TESS``), or the protocol's own name.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from batchser.errors import ConfigError
from batchser.records import IntArray
from batchser.settings import fingerprint_of
from batchser.training.corpora import Clip, clips_key

_SENTENCES: Final[Mapping[str, str]] = {
    "speaker-folds": "Protocol speaker-folds: every clip is scored by a model that never heard its speaker.",
    "random": "Protocol random: clips are split at random, as in most papers, so the model has heard the speakers it "
    "is tested on; expect less from strangers.",
    "random-leaky": "Protocol random-leaky: test clips, or changed copies of them, were trained on, as some papers' "
    "numbers can only be explained; the score says nothing of new recordings.",
    "cross-corpus": "Protocol cross-corpus: the model is tested on corpora that it never heard: other speakers, rooms "
    "and acting.",
}
PROTOCOLS: Final = tuple(_SENTENCES)
#: What the model that is run is called among the splits' models.
SHIPPED: Final = "shipped"
#: Corpora whose speakers are another corpus's: nobody may be trained on in one and be a stranger in the other.
_SAME_SPEAKERS: Final[Mapping[str, str]] = {"RAVDESS-song": "RAVDESS"}
#: Speakers without a fold are dealt into so many where neither the clips nor the recipe name any.
_LEAST_FOLDS: Final = 2
#: Names of a bundle's other networks.
_RESERVED: Final = ("gate", "shipped")
_KEY: Final = 12  # characters of a fingerprint that stand for a speaker or a clip


@dataclass(frozen=True, slots=True)
class Split:
    """One model's clips, as indices into the list of clips: ``train`` and ``test``, int (·,), ascending."""

    name: str
    train: IntArray
    test: IntArray


def describe(protocol: str) -> str:
    """Say in one sentence what a score under this protocol means; it is printed with every score.

    Raises
    ------
    ConfigError : no such protocol
    """
    _check_name(protocol)
    return _SENTENCES[protocol]


def speaker_of(clip: Clip) -> str:
    """Name a speaker across corpora: ``CREMA-D/1001``; RAVDESS's actors have one name, speaking or singing."""
    return f"{_SAME_SPEAKERS.get(clip.corpus, clip.corpus)}/{clip.speaker}"


def splits(
    clips: Sequence[Clip],
    protocol: str,
    *,
    folds: Sequence[int] = (),
    test_corpora: Sequence[str] = (),
    seed: int = 0,
    test_share: float = 0.2,
) -> list[Split]:
    """Deal clips into the splits of a protocol; the same clips and seed give the same splits, in any order of clips.

    Parameters
    ----------
    clips : what the recipe's corpora hold
    protocol : one of PROTOCOLS
    folds : for ``speaker-folds``: the folds to test on (none: all), each by the model of all other clips
    test_corpora : for ``cross-corpus``: the corpora to test on
    seed : decides what is drawn: folds of speakers that have none, and the random protocols' test clips
    test_share : of the clips that the random protocols test on

    Returns
    -------
    list[Split] : ``speaker-folds`` gives one a fold, the others one

    Raises
    ------
    ConfigError : no such protocol, a fold or corpus without clips, a speaker in two folds, nothing left to train on
    """
    _check_name(protocol)
    if protocol == "speaker-folds":
        found = _speaker_folds(clips, folds, seed)
    elif protocol == "cross-corpus":
        found = [_cross_corpus(clips, test_corpora)]
    else:
        if not 0 < test_share < 1:
            raise ConfigError(f"test_share: received {test_share}, expected a part of 1")
        test = _stratified(clips, test_share, seed)
        everything = np.arange(len(clips), dtype=np.int32)
        train = everything if protocol == "random-leaky" else np.setdiff1d(everything, test)
        found = [Split(protocol, train, test)]
    faults = [f"split {s.name}: {side} clips: none" for s in found for side in ("train", "test") if not _size(s, side)]
    if faults:
        raise ConfigError([f"protocol {protocol}: {fault}" for fault in faults])
    return found


def train_only(clips: Sequence[Clip], found: Sequence[Split]) -> list[str]:
    """Name the corpora that no split tests on, sorted: they are trained on, and no score is about them."""
    tested = {clips[k].corpus for split in found for k in split.test}
    return sorted({clip.corpus for clip in clips} - tested)


def held_out(clips: Sequence[Clip], split: Split, protocol: str) -> frozenset[str]:
    """Stand for what a split's model has not heard: speakers, or under the random protocols clips, as keys.

    Keys, so that a bundle can be asked whether it knows a speaker, and names nobody.
    """
    by_clip = protocol.startswith("random")
    return frozenset(clips_key([clips[k]])[:_KEY] if by_clip else speaker_key(clips[k]) for k in split.test)


def speaker_key(clip: Clip) -> str:
    """Stand for a clip's speaker across corpora and bundles."""
    return fingerprint_of(speaker_of(clip))[:_KEY]


def fold_count(clips: Sequence[Clip], folds: Sequence[int]) -> int:
    """How many folds speakers are dealt into: those that clips have or the recipe names, else five."""
    known = {clip.fold for clip in clips if clip.fold is not None} | set(folds)
    return max(_LEAST_FOLDS, max(known, default=4) + 1)


def assign_folds(clips: Sequence[Clip], num_folds: int, seed: int) -> IntArray:
    """Give every clip its speaker's fold: the corpus's own where it has one, else one dealt here.

    Speakers without a fold are dealt out corpus by corpus, those with most clips first, each to the fold that has the
    fewest clips of its corpus. A corpus with fewer speakers than folds cannot be measured on each of them and is only
    trained on.

    Returns
    -------
    int (n,) : the fold of each clip, −1 for a clip to train on only

    Raises
    ------
    ConfigError : a speaker whose clips lie in two folds
    """
    own: dict[str, set[int]] = defaultdict(set)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for clip in clips:
        counts[clip.corpus][speaker_of(clip)] += 1
        if clip.fold is not None:
            own[speaker_of(clip)].add(clip.fold)
    torn = sorted(speaker for speaker, folds in own.items() if len(folds) > 1)
    if torn:
        raise ConfigError([f"speaker {s}: clips in folds {sorted(own[s])}; a speaker belongs to one" for s in torn])
    fold_of = {speaker: min(folds) for speaker, folds in own.items()}
    for corpus, speakers in sorted(counts.items()):
        fold_of |= _dealt(corpus, speakers, fold_of, num_folds, seed)
    return np.array([fold_of[speaker_of(clip)] for clip in clips], np.int32)


def _dealt(
    corpus: str, speakers: Mapping[str, int], fold_of: Mapping[str, int], num_folds: int, seed: int
) -> dict[str, int]:
    """Folds for the speakers of one corpus that have none; ``speakers`` has the number of clips of each."""
    without = sorted(speaker for speaker in speakers if speaker not in fold_of)
    if len(speakers) < num_folds:
        return dict.fromkeys(without, -1)
    sizes = Counter(dict.fromkeys(range(num_folds), 0))
    for speaker, fold in fold_of.items():
        if speaker in speakers:
            sizes[fold] += speakers[speaker]
    # A corpus's folds must not depend on which other corpora are read with it.
    order = np.random.default_rng([seed, zlib.crc32(corpus.encode())]).permutation(len(without))
    dealt = {}
    for speaker in sorted((without[k] for k in order), key=lambda name: -speakers[name]):
        fold = min(range(num_folds), key=lambda f: (sizes[f], f))
        dealt[speaker] = fold
        sizes[fold] += speakers[speaker]
    return dealt


def _speaker_folds(clips: Sequence[Clip], folds: Sequence[int], seed: int) -> list[Split]:
    count = fold_count(clips, folds)
    assigned = assign_folds(clips, count, seed)
    wanted = sorted(set(folds)) or sorted(set(assigned.tolist()) - {-1})
    missing = [f"fold {fold}: no clip has it" for fold in wanted if not (assigned == fold).any()]
    if missing or not wanted:
        too_few = (
            f"protocol speaker-folds: every corpus has fewer speakers than {count} folds, so that none can be tested "
        )
        raise ConfigError(missing or f"{too_few}on; name fewer of them in the recipe, such as folds = [0, 1]")
    return [Split(str(fold), _rows(assigned != fold), _rows(assigned == fold)) for fold in wanted]


def _cross_corpus(clips: Sequence[Clip], test_corpora: Sequence[str]) -> Split:
    present = sorted({clip.corpus for clip in clips})
    unknown = [name for name in test_corpora if name not in present]
    if unknown or not test_corpora:
        raise ConfigError(
            f"protocol cross-corpus: test_corpora: received {', '.join(test_corpora) or 'none'}, expected some of the "
            f"recipe's corpora: {', '.join(present)}"
        )
    name = "+".join(sorted(set(test_corpora)))
    if "/" in name or name in _RESERVED:
        raise ConfigError(f"protocol cross-corpus: received a corpus named {name!r}; a bundle cannot name a split so")
    test = np.array([clip.corpus in test_corpora for clip in clips])
    tested = {speaker_of(clip) for clip, inside in zip(clips, test, strict=True) if inside}
    known = np.array([speaker_of(clip) in tested for clip in clips])
    return Split(name, _rows(~test & ~known), _rows(test))


def _stratified(clips: Sequence[Clip], share: float, seed: int) -> IntArray:
    """Draw ``share`` of the clips of each corpus and emotion, whoever speaks them: int (·,), ascending."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for k in sorted(range(len(clips)), key=lambda k: (str(clips[k].path), clips[k].start_s, clips[k].channel or 0)):
        groups[clips[k].corpus, clips[k].emotion].append(k)
    rng = np.random.default_rng([seed, 7])
    drawn: list[int] = []
    for name in sorted(groups):
        rows = groups[name]
        count = min(len(rows) - 1, max(1, round(share * len(rows))))  # one stays to be trained on
        drawn += [rows[j] for j in rng.permutation(len(rows))[:count]]
    return np.array(sorted(drawn), np.int32)


def _rows(inside: np.ndarray) -> IntArray:
    return np.flatnonzero(inside).astype(np.int32)


def _size(split: Split, side: str) -> int:
    return len(split.train if side == "train" else split.test)


def _check_name(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol: received {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
