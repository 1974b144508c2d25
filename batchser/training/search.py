"""The table ``[search]`` of a recipe: which of its keys `batchser tune` varies, and within what.

A key is a recipe's dotted one. A list holds choices, a table a range::

    [search]
    "network.units" = [[64], [128, 64], [256, 128]]
    "fit.learning_rate" = { from = 1e-4, to = 1e-2, log = true }
    "fit.frequency_mask" = { from = 0, to = 10 }
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from batchser.bundle import NetworkSpec
from batchser.errors import ConfigError
from batchser.extras import load_extra
from batchser.settings import FeatureSettings
from batchser.training.augment import AugmentSettings
from batchser.training.recipe import FitSettings, Recipe, WindowSettings, recipe_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

#: The recipe's tables that can be searched: what else it says decides what is measured, or what is shipped with it.
_KINDS: Final[Mapping[str, type]] = {
    "features": FeatureSettings, "windows": WindowSettings, "augment": AugmentSettings, "network": NetworkSpec,
    "fit": FitSettings,
}  # fmt: skip
#: Those of them that decide what training windows are.
_COMPOSED: Final = ("features", "windows", "augment")
_RANGE_KEYS: Final = ("from", "to", "log", "step")

#: A point of the space: values by key, lists as JSON, which is all that a study can keep.
Point = dict[str, Any]


def load_optuna() -> Any:
    """Import Optuna, quietly.

    Raises
    ------
    ConfigError : it is not installed
    """
    optuna = load_extra("optuna", "train", "tuning needs Optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def read_space(values: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Read the table ``[search]`` of a recipe's values.

    Returns
    -------
    dict[str, BaseDistribution] : Optuna's distribution of each key; that of choices has the recipe's own value too

    Raises
    ------
    ConfigError : no such table, or entries that no recipe can have, all told at once
    """
    recipe = recipe_of(dict(values))
    if not recipe.search:
        raise ConfigError(
            f"recipe {recipe.name}: it has no [search] to tune in; write one into a TOML file of your own, such as "
            '"fit.learning_rate" = { from = 1e-4, to = 1e-2, log = true }'
        )
    space, faults = {}, []
    for key, said in recipe.search.items():
        try:
            space[key] = _distribution(key, said, _own(recipe, key))
            for extreme in _extremes(said):
                recipe_of(with_values(values, {key: extreme}))
        except ConfigError as error:
            faults += [f"search.{key}: {fault.removeprefix('recipe: ')}" for fault in error.faults]
    if faults:
        raise ConfigError([f"recipe {recipe.name}: {fault}" for fault in faults])
    return space


def recipes_at_extremes(values: Mapping[str, Any]) -> dict[str, Recipe]:
    """Give the recipe at every choice and at both ends of every range, one key at a time, by what differs."""
    return {
        f"search.{key} = {json.dumps(extreme)}": recipe_of(with_values(values, {key: extreme}))
        for key, said in values["search"].items()
        for extreme in _extremes(said)
    }


def _distribution(key: str, said: Any, own: Any) -> BaseDistribution:
    """The distribution of one entry.

    Raises
    ------
    ConfigError : it is neither choices nor a range, or the recipe's own value lies outside
    """
    distributions = load_optuna().distributions
    if isinstance(said, list | tuple) and said:
        choices = [own]
        choices += [choice for choice in _as_lists(said) if choice not in choices]  # 0 and 0.0 are one
        try:
            return distributions.CategoricalDistribution([json.dumps(choice) for choice in choices])
        except TypeError as error:
            raise ConfigError(f"received {said!r}, expected numbers, words, true or false, or lists of them") from error
    if not isinstance(said, Mapping) or not {"from", "to"} <= set(said) <= set(_RANGE_KEYS):
        raise ConfigError(f"received {said!r}, expected a list of choices or {{ from = .., to = .., log = true }}")
    if key.partition(".")[0] in _COMPOSED:
        raise ConfigError(f"received {said!r}, expected a list of choices: each has windows of its own composed")
    low, high, log, step = said["from"], said["to"], said.get("log", False), said.get("step")
    numbers = [low, high, own] if step is None else [low, high, own, step]
    if not all(_is_number(value) for value in numbers) or not isinstance(log, bool) or (log and step) or step == 0:
        raise ConfigError(f"received {said!r} for {own!r}, expected numbers, and log or step at most")
    if not low <= own <= high or (log and low <= 0):
        above = " above 0" if log else ""
        raise ConfigError(f"received {low:g} to {high:g}, expected a range{above} with the recipe's own {own:g} inside")
    if step is not None and any((value - low) / step % 1 > 1e-9 for value in (own, high)):
        raise ConfigError(f"received a step of {step:g}, expected one that leads to {own:g} and to {high:g}")
    whole = all(isinstance(value, int) for value in numbers) and not _is_fraction(key)
    if whole:
        return distributions.IntDistribution(low, high, log, step or 1)
    return distributions.FloatDistribution(float(low), float(high), log, step)


def _extremes(said: Any) -> list[Any]:
    return [said["from"], said["to"]] if isinstance(said, Mapping) else list(said)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_fraction(key: str) -> bool:
    """Whether a recipe's key holds any number, also where one says 0 or 1 of it."""
    table, _, name = key.partition(".")
    return any(field.name == name and isinstance(field.default, float) for field in dataclasses.fields(_KINDS[table]))


def _as_lists(value: Any) -> Any:
    """Lists for tuples, at any depth, as TOML has them."""
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _own(recipe: Recipe, key: str) -> Any:
    """What the recipe itself says of a key, as TOML has it.

    Raises
    ------
    ConfigError : it has no such key, or a network's option is not said
    """
    table, _, name = key.partition(".")
    if table not in _KINDS or not name:
        raise ConfigError(f"expected a key of one of the tables {', '.join(_KINDS)}, such as fit.learning_rate")
    if key == "fit.epochs":
        raise ConfigError("epochs cannot be searched: trials are compared epoch by epoch")
    part = getattr(recipe, table)
    known = {"name": part.name, **part.options} if isinstance(part, NetworkSpec) else dataclasses.asdict(part)
    if name not in known:
        remedy = "say it in the recipe's [network]" if isinstance(part, NetworkSpec) else "no such key"
        raise ConfigError(f"the recipe does not have {key}: {remedy}")
    return _as_lists(known[name])


def own_point(recipe: Recipe, space: Mapping[str, BaseDistribution]) -> Point:
    """Give the recipe as it stands as a point of its space."""
    categorical = load_optuna().distributions.CategoricalDistribution
    return {
        key: json.dumps(_own(recipe, key)) if isinstance(each, categorical) else _own(recipe, key)
        for key, each in space.items()
    }


def at_point(values: Mapping[str, Any], point: Point) -> dict[str, Any]:
    """Give a recipe's values with those of a point instead of its own."""
    said = {key: json.loads(value) if isinstance(value, str) else value for key, value in point.items()}
    return with_values(values, said)


def with_values(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a recipe's values, with others set at dotted keys."""
    changed: dict[str, Any] = copy.deepcopy(dict(values))
    for key, value in changes.items():
        table, _, name = key.partition(".")
        changed.setdefault(table, {})[name] = value
    return changed


def words(point: Point) -> str:
    """Say a point in a line."""
    return ", ".join(
        f"{key} {value}" if isinstance(value, str) else f"{key} {value:.4g}" for key, value in point.items()
    )
