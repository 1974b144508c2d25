"""A recipe: every choice of a training run in one TOML file, checked before anything starts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from math import inf
from pathlib import Path
from typing import Any, Final

from batchser.bundle import NetworkSpec
from batchser.errors import ConfigError
from batchser.settings import NUM_PITCHES, FeatureSettings, GateSettings
from batchser.training.augment.settings import SNR_DB, AugmentSettings, is_rising_pair, is_weight
from batchser.training.corpora import LabelOptions
from batchser.training.protocols import PROTOCOLS


def _out_of_range(settings: Any, ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """Say which numbers lie outside their range, or are none; whole where the default is whole."""
    faults = []
    defaults = {item.name: item.default for item in dataclasses.fields(settings)}
    for name, (low, high) in ranges.items():
        value, whole = getattr(settings, name), isinstance(defaults[name], int)
        kind = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            expected = f"a {'whole ' if whole else ''}number of {low:g}" + (
                " or more" if high == inf else f" to {high:g}"
            )
            faults.append(f"{name}: received {value!r}, expected {expected}")
    return faults


def _snr_faults(value: Any) -> list[str]:
    if is_rising_pair(value, *SNR_DB):
        return []
    low, high = SNR_DB
    return [f"noise_snr_db: received {value!r}, expected two rising numbers from {low:g} to {high:g}"]


#: Kinds of groups that a fit can draw equally often.
BALANCES: Final = ("class", "corpus", "corpus-class")
#: How a clip may be changed where windows are whole clips.
VARIANTS: Final = ("plain", "noise", "pitch", "stretch", "telephone")


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """How training windows are cut from clips: as the job cuts calls, at any moment.

    ``copies`` windows a clip. A ``whole_clips`` part of them holds one clip as it was recorded, its silent ends too,
    and no other, as a short recording does; the others a moment of a turn: the clip without its silent ends, of which
    at least ``least_visible`` (of the shorter of clip and window) is inside, with a ``neighbours`` chance on either
    side of another clip of the same speaker and emotion, ``gap_s`` apart. A ``tails`` part ends early, as a
    recording's last window does.

    With ``cut = "clip"`` a window is a clip from ``offset_s`` on and no telephone, as in the published systems: copy k
    as the k-th of ``variants`` has it, ``plain``, with white ``noise`` ``noise_snr_db`` below the voice, with ``pitch``
    or ``stretch`` changed in [augment]'s ranges, or down [augment]'s whole ``telephone``. The rest does not apply then.
    """

    cut: str = "call"
    offset_s: float = 0.0
    variants: tuple[str, ...] = ("plain",)
    noise_snr_db: tuple[float, float] = (15.0, 30.0)
    copies: int = 8
    whole_clips: float = 0.5
    least_visible: float = 0.5
    neighbours: float = 0.6
    gap_s: tuple[float, float] = (0.05, 0.5)
    tails: float = 0.3

    def __post_init__(self) -> None:
        shares = dict.fromkeys(("whole_clips", "least_visible", "neighbours", "tails"), (0, 1))
        faults = _out_of_range(self, {"copies": (1, inf), "offset_s": (0, inf), **shares})
        faults += [
            f"{name}: received {value!r}, expected one of {', '.join(known)}"
            for name, value, known in (
                ("cut", self.cut, ("call", "clip")),
                *(("variants", variant, VARIANTS) for variant in self.variants or ("",)),
            )
            if value not in known
        ]
        if self.cut == "call" and (self.offset_s or self.variants != ("plain",)):
            faults.append('cut: received "call" with offset_s or variants, which are for cut = "clip"')
        if self.cut == "clip" and isinstance(self.copies, int) and self.copies % max(1, len(self.variants)):
            faults.append(f"copies: received {self.copies}, expected a multiple of the {len(self.variants)} variants")
        faults += _snr_faults(self.noise_snr_db)
        if not 0 <= self.gap_s[0] <= self.gap_s[1]:
            faults.append(f"gap_s: received {list(self.gap_s)}, expected two seconds, the shorter first")
        if faults:
            raise ConfigError([f"windows.{fault}" for fault in faults])


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a network is fitted: AdamW, early stopping on the validation speakers' loss, averaged last epochs.

    Without ``weight_decay`` AdamW is Adam; gradients are cut to a norm of ``clip_norm`` (0: not). ``schedule`` is
    ``cosine`` (after ``warm_up_steps``, to 2 % of ``learning_rate`` over all epochs), ``plateau`` (halved after
    ``plateau_patience`` epochs without gain) or ``constant``. Each window is blended with another (``mixup``, the
    parameter of its beta distribution), some are made noisy anew each epoch (``noise_probability``, ``noise_snr_db``
    below the voice; only with ``features.keep_colour``; teachers are asked of the window without it), its features (not
    pitches) and frames stretched by up to a part (``frequency_warp``, ``time_warp``), and stripes of it hidden
    (``frequency_mask``, ``time_mask``, at their widest). ``balance`` draws clips so that every ``class``, ``corpus`` or
    ``corpus-class`` (each class of each corpus) named in it comes up equally often; with ``class`` and ``corpus``
    alone, a class that one corpus has to itself fills far more than its share of that corpus. ``corpus_weights`` says
    of corpora how many times as often as that their clips are drawn. Calibration's offsets count clips so too.
    ``vote_share`` of a target is the listeners' votes, where a clip has some. ``validation_speakers`` of the
    corpora that are tested (or of the ``validation_corpora`` among them alone: the others then train with every
    speaker) are kept for early stopping and calibration, or a ``validation_share`` of the clips under protocols
    that do not tell speakers apart, the first ``validation_copies`` windows of each. Calibration finds a
    temperature and, with ``label_offsets``, an offset for each label. The weights kept are the mean of the last
    ``average_epochs`` epochs, where they do better on the validation clips than the best epoch. With
    ``norm_windows``, batch norms' means and variances are found anew after every epoch, on so many training windows
    without dropout: those kept while training lag behind, and behind dropouts are of wider inputs than a network in
    use has (Li et al. 2019; ``update_bn`` of Izmailov et al. 2018).
    ``precision`` is ``float32``, ``bfloat16`` or ``auto``: bfloat16 on a GPU or a processor with AMX (with AVX-512
    alone it gained nothing: 2.3 ms against 2.9 ms a window).
    """

    epochs: int = 40
    patience: int = 10
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    schedule: str = "cosine"
    warm_up_steps: int = 200
    plateau_patience: int = 3
    average_epochs: int = 0
    norm_windows: int = 0
    balance: tuple[str, ...] = ()
    corpus_weights: Mapping[str, float] = field(default_factory=dict)
    label_smoothing: float = 0.05
    vote_share: float = 0.0
    mixup: float = 0.0
    frequency_mask: int = 10
    time_mask: int = 20
    frequency_warp: float = 0.0
    time_warp: float = 0.0
    noise_probability: float = 0.0
    noise_snr_db: tuple[float, float] = (0.0, 40.0)
    validation_speakers: int = 7
    validation_corpora: tuple[str, ...] = ()
    validation_share: float = 0.1
    validation_copies: int = 2
    label_offsets: bool = True
    precision: str = "auto"

    def __post_init__(self) -> None:
        balance: Any = self.balance  # TOML does not know types
        faults = _out_of_range(self, {
            **dict.fromkeys(("epochs", "patience", "batch_size", "plateau_patience", "validation_speakers"), (1, inf)),
            **dict.fromkeys(("average_epochs", "weight_decay", "mixup", "frequency_mask", "time_mask"), (0, inf)),
            **dict.fromkeys(("clip_norm", "warm_up_steps", "norm_windows"), (0, inf)), "validation_copies": (1, inf),
            "learning_rate": (1e-12, 10), "label_smoothing": (0, 0.99), "vote_share": (0, 1),
            "validation_share": (0, 0.9), "noise_probability": (0, 1),
            **dict.fromkeys(("frequency_warp", "time_warp"), (0, 0.5)),
        })  # fmt: skip
        faults += [
            f"{name}: received {value!r}, expected one of {', '.join(known)}"
            for name, value, known in (
                ("schedule", self.schedule, ("cosine", "plateau", "constant")),
                ("precision", self.precision, ("auto", "float32", "bfloat16")),
                *(("balance", part, BALANCES) for part in balance if isinstance(balance, tuple)),
            )
            if value not in known
        ]
        if not isinstance(balance, tuple):
            faults.append(f"balance: received {balance!r}, expected a list of {', '.join(BALANCES)}")
        validated: Any = self.validation_corpora
        if not isinstance(validated, tuple):
            faults.append(f"validation_corpora: received {validated!r}, expected a list of corpora")
        faults += _snr_faults(self.noise_snr_db)
        weights: Any = self.corpus_weights
        if not isinstance(weights, Mapping) or not all(is_weight(weight) and weight for weight in weights.values()):
            faults.append(f"corpus_weights: received {weights!r}, expected a table of numbers above 0")
        if self.label_offsets not in (True, False):
            faults.append(f"label_offsets: received {self.label_offsets!r}, expected true or false")
        if faults:
            raise ConfigError([f"fit.{fault}" for fault in faults])


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to train, on what, measured how. Field names are the keys of the TOML file.

    ``line`` is what the clips come down that it is measured on, one of evaluate.degradations: ``clean`` for none.
    ``test_share`` of the clips is what the random protocols test on; ``kept_share`` of the held-out clips are above the
    confidence from which on the model does not abstain.
    ``teacher_networks`` are fitted for every split before the one that counts, by ``teacher_fit``; ``teacher_share`` of
    its targets is what they say of a window, in the mean (training.distil). What they are taught, and validated on, is
    ``fit``'s. ``gate_augment`` is the gate's own ``augment`` (empty: the same).
    ``ship`` says what the shipped network is taught: ``all`` clips, or a ``split``'s: then it is the first split's
    network itself, in half the time where there is one split.
    ``start_from`` names a bundle whose networks the fits start from (empty: from chance): its shipped one or, for clips
    that it was itself measured on, the split model that never heard them.
    ``search`` is what `batchser tune` varies (training.search); training takes no notice of it.
    ``sound_licences`` says whose the ``music``, ``noise`` and ``rir`` of the data are, for the model card.
    """

    name: str
    corpora: tuple[str, ...]
    labels: tuple[str, ...]
    negative_labels: tuple[str, ...]
    line: str = "mu-law"
    seed: int = 20261121
    protocol: str = "speaker-folds"
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    test_corpora: tuple[str, ...] = ()
    test_share: float = 0.2
    label_options: LabelOptions = field(default_factory=LabelOptions)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    windows: WindowSettings = field(default_factory=WindowSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    network: NetworkSpec = field(default_factory=lambda: NetworkSpec("conv-dual-lstm", {}))
    fit: FitSettings = field(default_factory=FitSettings)
    teacher_networks: tuple[NetworkSpec, ...] = ()
    teacher_share: float = 0.6
    teacher_fit: FitSettings = field(default_factory=FitSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    gate_network: NetworkSpec = field(default_factory=lambda: NetworkSpec("gate-conv", {}))
    gate_fit: FitSettings = field(default_factory=FitSettings)
    gate_augment: AugmentSettings | None = None
    gate_windows: int = 16_000
    gate_held_out_fold: int = 4
    gate_held_out_music: float = 0.33
    kept_share: float = 0.75
    ship: str = "all"
    start_from: str = ""
    search: Mapping[str, Any] = field(default_factory=dict)
    sound_licences: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = _out_of_range(self, {
            "seed": (0, inf), "gate_windows": (20, inf), "gate_held_out_fold": (0, inf),
            "gate_held_out_music": (0, 0.99), "kept_share": (0.01, 1), "test_share": (0.01, 0.99),
            "teacher_share": (0, 1),
        })  # fmt: skip
        plain = FitSettings()
        faults += [
            f"{fit}.{name}: received {getattr(getattr(self, fit), name)!r}; {why}"
            for fit, why in (
                ("teacher_fit", "say it in [fit], it is both's"),
                ("gate_fit", "it is for [fit]: what the gate is taught is composed for it"),
            )
            for name in (
                "balance",
                "corpus_weights",
                "vote_share",
                "validation_speakers",
                "validation_corpora",
                "validation_share",
            )
            if getattr(getattr(self, fit), name) != getattr(plain, name)
        ]
        faults += [
            f"{item.name}: received {getattr(self, item.name)!r}, expected a list"
            for item in dataclasses.fields(self)
            if str(item.type).startswith("tuple") and not isinstance(getattr(self, item.name), tuple)
        ]
        noiseless = {"gate_fit": "the gate's noise is [gate_augment]'s"}
        if not (self.features.centred and self.features.keep_colour):
            why = "noise is added to log-mel that keeps its colour alone (features.keep_colour)"
            noiseless |= {"fit": why, "teacher_fit": why}
        faults += [
            f"{name}.noise_probability: received {getattr(self, name).noise_probability:g}, expected 0: {why}"
            for name, why in noiseless.items()
            if getattr(self, name).noise_probability
        ]
        others = [network for network in self.teacher_networks if network != self.network]
        if self.start_from and others:
            faults.append(
                f"teacher_networks: received {len(others)} of another build than [network] with start_from; they would "
                "begin from chance: leave them out, or write [network]'s options into them"
            )
        faults += self._pitch_faults()
        if self.ship not in ("all", "split"):
            faults.append(f"ship: received {self.ship!r}, expected one of all, split")
        if faults:
            raise ConfigError([f"recipe: {fault}" for fault in faults])

    def _pitch_faults(self) -> list[str]:
        """Networks that would take other features for pitches, or pitches for bands: they know them by number alone."""
        found = self.features.num_features - self.features.num_bands
        networks = {f"teacher_networks[{k}]": network for k, network in enumerate(self.teacher_networks)}
        faults = []
        for name, network in {"network": self.network, **networks}.items():
            taken = network.options.get("num_pitches", NUM_PITCHES) if network.options.get("pitch_filters") else 0
            if network.name == "conv-dual-lstm" and taken != found:
                faults.append(
                    f"{name}: takes {taken} pitches (pitch_filters, num_pitches), and the features end with {found}"
                )
        return faults


def read_recipe(name_or_path: str, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe that the package carries, by name, or a TOML file: ``recipe_of(read_values(...))``.

    Raises
    ------
    ConfigError : as those do
    """
    return recipe_of(read_values(name_or_path, changes))


def read_values(name_or_path: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe's TOML as it is, with changes.

    ``changes`` are lines of TOML with dotted keys, such as ``fit.epochs=3`` or ``protocol=random`` (words need no
    quotes), which win over the recipe's.

    Raises
    ------
    ConfigError : no such recipe, no TOML, or a change that is none
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
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {name_or_path}: not TOML: {error}") from error
    for change in changes:
        _merge(values, _read_change(change))
    return values


def _read_change(change: str) -> dict[str, Any]:
    """``KEY=VALUE`` as TOML, or with VALUE as a word."""
    key, equals, value = change.partition("=")
    if not (key.strip() and equals):
        raise ConfigError(f"recipe: received the change {change!r}, expected KEY=VALUE, such as fit.epochs=3")
    for text in (change, f"{key} = {json.dumps(value.strip())}"):
        with contextlib.suppress(tomllib.TOMLDecodeError):
            return tomllib.loads(text)
    raise ConfigError(f"recipe: received the change {change!r}, expected KEY=VALUE, such as fit.epochs=3")


def _merge(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Put changes into tables of values, at any depth, in place."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


_PARTS: Final[Mapping[str, type]] = {
    "label_options": LabelOptions,
    "features": FeatureSettings,
    "windows": WindowSettings,
    "augment": AugmentSettings,
    "fit": FitSettings,
    "teacher_fit": FitSettings,
    "gate": GateSettings,
    "gate_fit": FitSettings,
    "gate_augment": AugmentSettings,
}


_NETWORKS: Final = ("network", "gate_network")


def recipe_of(values: dict[str, Any]) -> Recipe:
    """Build a Recipe from TOML's values; lists become tuples.

    Raises
    ------
    ConfigError : keys and values that a recipe does not have, all told at once
    """
    faults = _unknown_keys(values, Recipe, "")
    for name, kind in _PARTS.items():
        faults += _unknown_keys(values.get(name, {}), kind, f"{name}.")
    faults += [f"{key}: missing" for key in ("name", "corpora", "labels", "negative_labels") if key not in values]
    for name in _NETWORKS:
        if name in values and not _is_network(values[name]):
            faults.append(f"{name}: received {values[name]!r}, expected a table with the network's name")
    teachers = values.get("teacher_networks", [])
    if not (isinstance(teachers, list) and all(map(_is_network, teachers))):
        faults.append(f"teacher_networks: received {teachers!r}, expected a list of tables with the networks' names")
    if values.get("protocol", PROTOCOLS[0]) not in PROTOCOLS:
        faults.append(f"protocol: received {values['protocol']!r}, expected one of {', '.join(PROTOCOLS)}")
    if not isinstance(values.get("search", {}), dict):
        faults.append(f"search: received {values['search']!r}, expected a table")
    if not faults and not set(values["negative_labels"]) <= set(values["labels"]):
        faults.append(f"negative_labels: received {values['negative_labels']}, expected some of {values['labels']}")
    if faults:
        raise ConfigError([f"recipe: {fault}" for fault in faults])
    built: dict[str, Any] = {key: _as_tuples(value) for key, value in values.items()}
    for name, kind in _PARTS.items():
        if name in values:
            try:
                built[name] = kind(**{key: _as_tuples(value) for key, value in values[name].items()})
            except ConfigError as error:
                faults += [f"{name}.{fault.removeprefix('fit.')}" if kind is FitSettings else fault
                           for fault in error.faults]  # fmt: skip
    for name in _NETWORKS:
        if name in values:
            built[name] = _network(values[name])
    built["teacher_networks"] = tuple(map(_network, teachers))
    if faults:
        raise ConfigError([f"recipe: {fault}" for fault in faults])
    return Recipe(**built)


def _is_network(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


def _network(value: Mapping[str, Any]) -> NetworkSpec:
    return NetworkSpec(value["name"], {name: option for name, option in value.items() if name != "name"})


def _as_tuples(value: Any) -> Any:
    """Make tuples of lists, at any depth: settings are frozen."""
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def _unknown_keys(values: Any, kind: type, prefix: str) -> list[str]:
    if not isinstance(values, dict):
        return [f"{prefix.rstrip('.')}: received {values!r}, expected a table"]
    known = [item.name for item in dataclasses.fields(kind)]
    return [f"{prefix}{key}: no such key; expected one of {', '.join(known)}" for key in values if key not in known]
