"""A recipe: every choice of a training run in one TOML file, checked before anything starts."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from batchser.bundle import NetworkSpec
from batchser.errors import ConfigError
from batchser.settings import FeatureSettings, GateSettings


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a network is fitted: AdamW under a cosine schedule, early stopping on the validation speakers' loss."""

    epochs: int = 40
    patience: int = 10
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    copies: int = 4
    label_smoothing: float = 0.05
    mixup: float = 0.0
    frequency_mask: int = 10
    time_mask: int = 20
    validation_speakers: int = 7


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to train, on what, and how. Field names are the keys of the TOML file."""

    name: str
    corpora: tuple[str, ...]
    labels: tuple[str, ...]
    negative_labels: tuple[str, ...]
    seed: int = 20261121
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    network: NetworkSpec = field(default_factory=lambda: NetworkSpec("conv-dual-lstm", {}))
    fit: FitSettings = field(default_factory=FitSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    gate_network: NetworkSpec = field(default_factory=lambda: NetworkSpec("gate-conv", {}))
    gate_fit: FitSettings = field(default_factory=FitSettings)
    gate_windows: int = 16_000
    gate_held_out_fold: int = 4
    gate_held_out_music: float = 0.33


def read_recipe(name_or_path: str) -> Recipe:
    """Read a recipe that the package carries, by name, or a TOML file.

    Raises
    ------
    ConfigError : no such recipe, or keys and values that a recipe does not have, all told at once
    """
    carried = resources.files("batchser.training") / "recipes"
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ConfigError(f"recipe {name_or_path}: no such file")
        text = path.read_text(encoding="utf-8")
    else:
        source = carried / f"{name_or_path}.toml"
        if not source.is_file():
            names = ", ".join(
                sorted(Path(entry.name).stem for entry in carried.iterdir() if entry.name.endswith("toml"))
            )
            raise ConfigError(
                f"recipe {name_or_path!r}: received no known name; expected one of {names}, or a TOML file"
            )
        text = source.read_text(encoding="utf-8")
    try:
        return _recipe_of(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {name_or_path}: not TOML: {error}") from error


_PARTS: Mapping[str, type] = {
    "features": FeatureSettings,
    "fit": FitSettings,
    "gate": GateSettings,
    "gate_fit": FitSettings,
}


def _recipe_of(values: dict[str, Any]) -> Recipe:
    """Build a Recipe from TOML's values; lists become tuples."""
    faults = _unknown_keys(values, Recipe, "")
    for name, kind in _PARTS.items():
        faults += _unknown_keys(values.get(name, {}), kind, f"{name}.")
    faults += [f"{key}: missing" for key in ("name", "corpora", "labels", "negative_labels") if key not in values]
    for name in ("network", "gate_network"):
        if name in values and not (isinstance(values[name], dict) and isinstance(values[name].get("name"), str)):
            faults.append(f"{name}: received {values[name]!r}, expected a table with the network's name")
    if not faults and not set(values["negative_labels"]) <= set(values["labels"]):
        faults.append(f"negative_labels: received {values['negative_labels']}, expected some of {values['labels']}")
    if faults:
        raise ConfigError([f"recipe: {fault}" for fault in faults])
    built: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    for name, kind in _PARTS.items():
        if name in values:
            built[name] = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values[name].items()})
    for name in ("network", "gate_network"):
        if name in values:
            options = dict(values[name])
            built[name] = NetworkSpec(options.pop("name"), options)
    return Recipe(**built)


def _unknown_keys(values: Any, kind: type, prefix: str) -> list[str]:
    if not isinstance(values, dict):
        return [f"{prefix.rstrip('.')}: received {values!r}, expected a table"]
    known = [item.name for item in dataclasses.fields(kind)]
    return [f"{prefix}{key}: no such key; expected one of {', '.join(known)}" for key in values if key not in known]
