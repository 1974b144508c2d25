"""Starting from another bundle: its networks are trained on, and none on what it will be measured with.

The gate is taken as it is. A split whose test speakers the bundle knows starts from the bundle's split model that was
kept from just these speakers, and the speakers that a model was calibrated on stay for that. A bundle notes whom it has
heard, also through the bundle that it was itself started from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchser.bundle import Bundle, find_bundle, read_weights, split_file
from batchser.errors import ConfigError
from batchser.records import FloatArray
from batchser.training import evaluate, protocols
from batchser.training.corpora import Clip
from batchser.training.fit import Start
from batchser.training.protocols import SHIPPED, Split
from batchser.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Base:
    """A bundle to start from."""

    bundle: Bundle

    @property
    def heard(self) -> frozenset[str]:
        """The speakers that some model of the bundle was trained on, as ``protocols.speaker_key``."""
        return frozenset(self.bundle.training["heard"])

    def model_for(self, clips: Sequence[Clip], split: Split, protocol: str) -> str:
        """Name the model that a split may start from: a split model, or the shipped one for speakers it does not know.

        Raises
        ------
        ConfigError : the split tests on what every model of the bundle has heard, or its model is not there
        """
        known = {protocols.speaker_key(clips[k]) for k in split.test} & self.heard
        if not known:
            return SHIPPED
        by_clip = protocol.startswith("random")
        tested = protocols.held_out(clips, split, protocol) if by_clip else known
        alike = by_clip == evaluate.protocol_of(self.bundle).startswith("random")
        if alike and tested <= evaluate.unheard_by(self.bundle).get(split.name, frozenset()):
            evaluate.require_split_models(self.bundle, [split.name])
            return split.name
        raise ConfigError(
            f"start_from {self.bundle.name}: split {split.name} tests on {len(known)} speakers that it has heard; take "
            "the protocol, folds and corpora that it was trained with, or start from nothing"
        )

    def validation_of(self, model: str) -> Collection[str]:
        """The speakers that one of the bundle's models was stopped and calibrated on and not trained on, as keys."""
        return frozenset(self.bundle.training["validation_speakers"].get(model, ()))

    def data_besides(self, corpora: Collection[str]) -> list[dict[str, Any]]:
        """The bundle's data that a recipe of ``corpora`` does not name: behind its model all the same."""
        return [
            {**corpus, "through": corpus.get("through", self.bundle.name)}
            for corpus in self.bundle.data
            if corpus["name"] not in corpora
        ]

    def gate_weights(self) -> dict[str, FloatArray]:
        """Read the gate's arrays, named as weights.npz has them."""
        return {name: array for name, array in read_weights(self.bundle).items() if name.startswith("gate/")}

    def about_gate(self) -> dict[str, Any]:
        """What bundle.json says of the gate's lesson."""
        return {name: value for name, value in self.bundle.training.items() if name.startswith("gate_")}

    def start(self, model: str, labels: Sequence[str]) -> Start:
        """Read one of the bundle's models for a network of ``labels``."""
        arrays = read_weights(self.bundle, "weights.npz" if model == SHIPPED else split_file(model))
        weights = [arrays[name] for name in sorted(arrays) if name.startswith("emotion/")]
        own = self.bundle.labels
        columns = tuple(own.index(label) if label in own else -1 for label in labels)
        return Start(f"{self.bundle.sha256}/{model}", weights, arrays["scaler/mean"], arrays["scaler/std"], columns)


def open_base(recipe: Recipe, search: Sequence[Path] = ()) -> Base | None:
    """Open the bundle that a recipe starts from, if it names one.

    Raises
    ------
    ConfigError : another network, or other features
    BundleError : there is none of that name
    """
    if not recipe.start_from:
        return None
    bundle = find_bundle(recipe.start_from, search)
    faults = [
        f"start_from {bundle.name}: its {name} differ: received {received}, expected {expected}"
        for name, received, expected in (
            ("network", recipe.network, bundle.network),
            ("gate network", recipe.gate_network, bundle.gate_network),
            ("features", recipe.features, bundle.features),
        )
        if received != expected
    ]
    if faults:
        raise ConfigError(faults)
    return Base(bundle)
