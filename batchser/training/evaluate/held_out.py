"""What a bundle never heard: its corpora's clips, the protocol's splits, and the model of each split."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from batchser.bundle import Bundle, read_weights, split_file
from batchser.errors import ConfigError
from batchser.scoring import Model
from batchser.settings import available_cores
from batchser.training import protocols
from batchser.training.corpora import Clip, CorpusRead, LabelOptions, clips_key, read_corpora
from batchser.training.protocols import SHIPPED, Split

#: The line of a model whose recipe names no other.
TELEPHONE_LINE: Final = "mu-law"
#: No line at all: what the degradations are compared with.
CLEAN_LINE: Final = "clean"


def read_clips(bundle: Bundle, data: Path, corpora: Sequence[str] = ()) -> CorpusRead:
    """Read the bundle's corpora as they were read for its training, or others, with the same mapping of labels.

    Raises
    ------
    ConfigError : a corpus is not under ``data``, or the bundle was trained on none that can be read
    """
    options = dict(bundle.training.get("label_options", {}))
    options["merge"] = tuple((source, target) for source, target in options.get("merge", ()))
    own = [corpus["name"] for corpus in bundle.data if "through" not in corpus]  # what the bundle it began with heard
    read = read_corpora(data, corpora or own, LabelOptions(**options))
    silent = set(bundle.training.get("silent", ()))
    if not silent:
        return read
    return replace(read, clips=[clip for clip in read.clips if clips_key([clip]) not in silent])


def bundle_splits(bundle: Bundle, clips: Sequence[Clip]) -> list[Split]:
    """The splits that the bundle's split models were trained for, on the clips as they were read then.

    Raises
    ------
    ConfigError : the bundle carries no split models; the clips are dealt into other splits than in its training, so
        that a model would be tested on what it has heard
    """
    require_split_models(bundle, list(bundle.training.get("held_out", ())))
    training, protocol = bundle.training, protocol_of(bundle)
    found = protocols.splits(
        clips,
        protocol,
        folds=[int(fold) for fold in training["folds"]],
        test_corpora=training["test_corpora"],
        seed=int(training["seed"]),
        test_share=float(training["test_share"]),
    )
    unheard = unheard_by(bundle)
    known = {split.name: protocols.held_out(clips, split, protocol) - unheard.get(split.name, set()) for split in found}
    what = "clips" if protocol.startswith("random") else "speakers"
    faults = [f"split {name}: {len(own)} {what} that its model was trained on" for name, own in known.items() if own]
    if faults:
        remedy = "give the corpora, manifests and index.csv that it was trained on"
        about = f"bundle {bundle.name}: clips are not dealt as in its training"
        raise ConfigError([f"{about}: {fault}; {remedy}" for fault in faults])
    return found


def strangers(bundle: Bundle, clips: Sequence[Clip]) -> Split:
    """The clips of speakers whom no model of the bundle has heard, to be scored by the shipped one.

    Raises
    ------
    ConfigError : it has heard them all, or does not say whom it has heard
    """
    if "heard" not in bundle.training:
        raise ConfigError(f"bundle {bundle.name}: it does not say whom it has heard; train it again to measure it")
    heard = set(bundle.training["heard"])
    test = [k for k, clip in enumerate(clips) if protocols.speaker_key(clip) not in heard]
    if not test:
        raise ConfigError(
            f"corpora: bundle {bundle.name} was trained on every speaker of these {len(clips)} clips; measured without "
            "naming corpora, each split's model is asked about those that it has not heard"
        )
    return Split(SHIPPED, np.array([], np.int32), np.array(test, np.int32))


def unheard_by(bundle: Bundle) -> dict[str, frozenset[str]]:
    """What each split model has not heard, as the training run noted it: keys of speakers or clips by split."""
    return {name: frozenset(keys) for name, keys in bundle.training["held_out"].items()}


def protocol_of(bundle: Bundle) -> str:
    """The protocol that the bundle was trained under (bundles before there were several: speaker-folds)."""
    return str(bundle.training.get("protocol", "speaker-folds"))


def line_of(bundle: Bundle) -> str:
    """The line, one of DEGRADATIONS, that the bundle's main scores are measured on."""
    return str(bundle.training.get("line", TELEPHONE_LINE))


def windows_are_clips(bundle: Bundle) -> bool:
    """Whether the bundle's recipe trains on clips as the published systems cut them, and not on moments of calls."""
    windows = bundle.training.get("whole_recipe", {}).get("windows", {})
    return bool(windows.get("cut", "call") == "clip")


def split_model(bundle: Bundle, name: str) -> Model:
    """Load the model of one split: the bundle with the weights that never saw the split's test clips.

    Raises
    ------
    ConfigError : the bundle carries no such model
    """
    require_split_models(bundle, [name])
    arrays = read_weights(bundle, split_file(name))
    draft = replace(bundle, temperature=float(arrays.pop("temperature")[0]))
    gate = {key: array for key, array in read_weights(bundle).items() if key.startswith("gate/")}
    return Model(draft, gate | arrays, num_threads=available_cores())


def require_split_models(bundle: Bundle, names: Collection[str]) -> None:
    """Refuse a bundle without the models of the splits ``names``, or of any where there are no names.

    Raises
    ------
    ConfigError : with the files that it lacks
    """
    folder = bundle.folder
    lacking = [split_file(name) for name in names if folder is None or not (folder / split_file(name)).is_file()]
    if lacking or not names:
        files = f" ({', '.join(lacking)})" if lacking else ""
        older = folder is not None and (folder / "folds.npz").is_file()
        why = "; an earlier batchser wrote them as folds.npz, which this one does not read" if older else ""
        raise ConfigError(
            f"bundle {bundle.name}: it carries no split models{files}{why}; train it again to evaluate it or to start "
            "from it"
        )
