"""Protocols: no split leaks what its protocol says it does not, whatever the clips."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchser.errors import ConfigError
from batchser.training import protocols
from batchser.training.corpora import Clip
from batchser.training.protocols import PROTOCOLS, assign_folds, describe, speaker_of, splits, train_only

EMOTIONS = ("angry", "happy", "sad")


def clip(corpus: str, speaker: object, emotion: str, take: int = 0, fold: int | None = None) -> Clip:
    return Clip(corpus, Path(f"{corpus}/{speaker}_{emotion}_{take}.wav"), str(speaker), emotion, fold)


def corpus(name: str, num_speakers: int, takes: int = 2, folds: int | None = None) -> list[Clip]:
    """Every speaker says every emotion; speaker k lies in fold k % folds."""
    return [
        clip(name, speaker, emotion, take, None if folds is None else speaker % folds)
        for speaker in range(num_speakers)
        for emotion in EMOTIONS
        for take in range(takes)
    ]


@st.composite
def any_clips(draw: st.DrawFn) -> list[Clip]:
    """Corpora of 5 to 12 speakers with uneven numbers of clips, some of them with folds, in any order."""
    clips = []
    for name in draw(st.sampled_from([["A"], ["A", "B"], ["B", "C", "A"]])):
        with_folds = draw(st.booleans())
        for speaker in range(draw(st.integers(5, 12))):
            takes = draw(st.integers(1, 4))
            fold = speaker % 5 if with_folds else None
            clips += [clip(name, speaker, e, take, fold) for e in EMOTIONS for take in range(takes)]
    random.Random(draw(st.integers(0, 9))).shuffle(clips)
    return clips


@settings(max_examples=40, deadline=None)
@given(any_clips(), st.integers(0, 3))
def test_speaker_folds_never_share_a_speaker_and_test_every_clip_once(clips, seed):
    found = splits(clips, "speaker-folds", seed=seed)
    for split in found:
        sides = [{speaker_of(clips[k]) for k in side} for side in (split.train, split.test)]
        assert not sides[0] & sides[1]
        assert sorted([*split.train, *split.test]) == list(range(len(clips)))
    assert sorted(k for split in found for k in split.test) == list(range(len(clips)))
    assert [split.name for split in found] == ["0", "1", "2", "3", "4"]
    assert train_only(clips, found) == []


@settings(max_examples=30, deadline=None)
@given(any_clips(), st.sampled_from(PROTOCOLS), st.integers(0, 3))
def test_splits_do_not_depend_on_the_order_of_clips(clips, protocol, seed):
    corpora = sorted({c.corpus for c in clips})
    if protocol == "cross-corpus" and len(corpora) == 1:
        return
    shuffled = random.Random(seed).sample(clips, len(clips))
    first, second = (
        [
            (split.name, *(sorted(str(order[k].path) for k in side) for side in (split.train, split.test)))
            for split in splits(order, protocol, test_corpora=corpora[:1], seed=seed)
        ]
        for order in (clips, shuffled)
    )
    assert first == second


@settings(max_examples=30, deadline=None)
@given(any_clips(), st.integers(0, 3))
def test_random_splits_hold_a_fifth_of_each_emotion(clips, seed):
    (plain,), (leaky,) = (splits(clips, protocol, seed=seed) for protocol in ("random", "random-leaky"))
    assert plain.test.tolist() == leaky.test.tolist()
    assert not set(plain.train) & set(plain.test)
    assert sorted([*plain.train, *plain.test]) == list(range(len(clips)))
    assert leaky.train.tolist() == list(range(len(clips)))  # copies of every test clip are trained on
    groups = Counter((c.corpus, c.emotion) for c in clips)
    tested = Counter((clips[k].corpus, clips[k].emotion) for k in plain.test)
    for group, count in groups.items():
        assert abs(tested[group] - 0.2 * count) <= 0.5


def test_random_splits_have_speakers_on_both_sides_and_depend_on_the_seed():
    clips = corpus("A", 4, takes=20)
    (split,) = splits(clips, "random", seed=1)
    assert {clips[k].speaker for k in split.train} == {clips[k].speaker for k in split.test} == {"0", "1", "2", "3"}
    (other,) = splits(clips, "random", seed=2)
    assert split.test.tolist() != other.test.tolist()
    (half,) = splits(clips, "random", seed=1, test_share=0.5)
    assert len(half.test) == len(clips) // 2


def test_the_corpus_s_own_folds_are_kept():
    clips = corpus("A", 10, folds=5)
    for split in splits(clips, "speaker-folds"):
        assert {clips[k].fold for k in split.test} == {int(split.name)}


def test_a_part_of_the_folds_is_tested_by_models_of_all_other_clips():
    clips = corpus("A", 10, folds=5)
    (split,) = splits(clips, "speaker-folds", folds=[3])
    assert split.name == "3"
    assert {clips[k].fold for k in split.train} == {0, 1, 2, 4}


def test_folds_made_here_are_balanced_by_clips():
    clips = [
        clip("A", speaker, emotion, take)
        for speaker in range(12)
        for emotion in EMOTIONS
        for take in range(1 + speaker)
    ]
    folds = assign_folds(clips, 4, 0)
    sizes = np.bincount(folds)
    assert sizes.sum() == len(clips)
    assert sizes.max() - sizes.min() <= 3 * 6
    alike = corpus("A", 12)
    assert assign_folds(alike, 4, 1).tolist() != assign_folds(alike, 4, 2).tolist()
    with_another = assign_folds([*clips, *corpus("B", 6)], 4, 0)
    assert with_another[: len(clips)].tolist() == folds.tolist()  # another corpus changes nothing


def test_a_corpus_of_two_speakers_is_trained_on_only():
    clips = corpus("CREMA-D", 10, folds=5) + corpus("TESS", 2)
    found = splits(clips, "speaker-folds")
    for split in found:
        assert {clips[k].corpus for k in split.test} == {"CREMA-D"}
        assert sum(clips[k].corpus == "TESS" for k in split.train) == 12
    assert train_only(clips, found) == ["TESS"]
    with pytest.raises(ConfigError, match="fewer speakers than 5 folds"):
        splits(corpus("TESS", 2), "speaker-folds")


def test_actors_who_speak_and_sing_are_one_speaker():
    clips = corpus("RAVDESS", 10, folds=5) + corpus("RAVDESS-song", 10)
    for split in splits(clips, "speaker-folds"):
        assert not {clips[k].speaker for k in split.train} & {clips[k].speaker for k in split.test}
        assert {clips[k].corpus for k in split.test} == {"RAVDESS", "RAVDESS-song"}
    clips += corpus("TESS", 2)
    (across,) = splits(clips, "cross-corpus", test_corpora=["RAVDESS-song"])
    assert {clips[k].corpus for k in across.train} == {"TESS"}


def test_cross_corpus_tests_whole_corpora():
    clips = corpus("A", 2) + corpus("B", 3) + corpus("C", 1)
    (split,) = splits(clips, "cross-corpus", test_corpora=["C", "A"])
    assert split.name == "A+C"
    assert {clips[k].corpus for k in split.train} == {"B"}
    assert {clips[k].corpus for k in split.test} == {"A", "C"}


@pytest.mark.parametrize(
    ("protocol", "options", "sentence"),
    [
        ("folds", {}, "protocol: received 'folds', expected one of speaker-folds, random, random-leaky, cross-corpus"),
        ("speaker-folds", {"folds": [0, 7, 9]}, "fold 9: no clip has it"),
        ("cross-corpus", {}, "test_corpora: received none, expected some of the recipe's corpora: A"),
        ("cross-corpus", {"test_corpora": ["B"]}, "test_corpora: received B, expected some of"),
        ("cross-corpus", {"test_corpora": ["A"]}, "split A: train clips: none"),
        ("random", {"test_share": 1.0}, "test_share: received 1.0, expected a part of 1"),
    ],
)
def test_what_cannot_be_split_is_told(protocol, options, sentence):
    with pytest.raises(ConfigError) as raised:
        splits(corpus("A", 5, folds=5), protocol, **options)
    assert any(sentence in fault for fault in raised.value.faults)


def test_a_speaker_in_two_folds_is_told():
    with pytest.raises(ConfigError, match=r"speaker A/1: clips in folds \[0, 1\]; a speaker belongs to one"):
        splits([clip("A", 1, "sad", 0, 0), clip("A", 1, "sad", 1, 1)], "speaker-folds")


def test_every_protocol_has_its_sentence():
    assert PROTOCOLS == ("speaker-folds", "random", "random-leaky", "cross-corpus")
    for protocol in PROTOCOLS:
        assert describe(protocol).startswith(f"Protocol {protocol}: ")
    assert len({describe(protocol) for protocol in PROTOCOLS}) == 4
    with pytest.raises(ConfigError, match="protocol: received 'honest'"):
        protocols.describe("honest")
