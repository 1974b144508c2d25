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
from batchser.training.recipe import Recipe, merge, recipe_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

#: The recipe's tables that can be searched: what else it says decides what is measured, or what is shipped with it.
_TABLES: Final = ("features", "windows", "augment", "network", "fit")
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
        except (ConfigError, ValueError) as error:
            told = error.faults if isinstance(error, ConfigError) else [str(error)]
            faults += [f"search.{key}: {fault.removeprefix('recipe: ')}" for fault in told]
    if faults:
        raise ConfigError([f"recipe {recipe.name}: {fault}" for fault in faults])
    return space


def _distribution(key: str, said: Any, own: Any) -> BaseDistribution:
    """The distribution of one entry.

    Raises
    ------
    ConfigError, ValueError : it is neither choices nor a range, or the recipe's own value lies outside
    """
    distributions = load_optuna().distributions
    if isinstance(said, list | tuple) and said:
        choices = [json.dumps(choice) for choice in said]
        mine = json.dumps(own)
        return distributions.CategoricalDistribution([mine, *(choice for choice in choices if choice != mine)])
    if not isinstance(said, Mapping) or not {"from", "to"} <= set(said) <= set(_RANGE_KEYS):
        raise ConfigError(f"received {said!r}, expected a list of choices or {{ from = .., to = .., log = true }}")
    low, high, log, step = said["from"], said["to"], bool(said.get("log")), said.get("step")
    if not all(_is_number(value) for value in (low, high, own)):
        raise ConfigError(f"received {said!r} for {own!r}, expected numbers")
    if not low <= own <= high:
        raise ConfigError(f"received {low:g} to {high:g}, expected a range with the recipe's own {own:g} inside")
    if all(isinstance(value, int) for value in (low, high, own)):
        return distributions.IntDistribution(low, high, log, step or 1)
    return distributions.FloatDistribution(float(low), float(high), log, step)


def _extremes(said: Any) -> list[Any]:
    return [said["from"], said["to"]] if isinstance(said, Mapping) else list(said)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _own(recipe: Recipe, key: str) -> Any:
    """What the recipe itself says of a key, as TOML has it.

    Raises
    ------
    ConfigError : it has no such key, or a network's option is not said
    """
    table, _, name = key.partition(".")
    if table not in _TABLES or not name:
        raise ConfigError(f"expected a key of one of the tables {', '.join(_TABLES)}, such as fit.learning_rate")
    part = getattr(recipe, table)
    known = {"name": part.name, **part.options} if isinstance(part, NetworkSpec) else dataclasses.asdict(part)
    if name not in known:
        remedy = "say it in the recipe's [network]" if isinstance(part, NetworkSpec) else "no such key"
        raise ConfigError(f"the recipe does not have {key}: {remedy}")
    return json.loads(json.dumps(known[name]))


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
    """Copy a recipe's values, changed at dotted keys."""
    changed: dict[str, Any] = copy.deepcopy(dict(values))
    for key, value in changes.items():
        table, _, name = key.partition(".")
        merge(changed, {table: {name: value}})
    return changed


def words(point: Point) -> str:
    """Say a point in a line."""
    return ", ".join(
        f"{key} {value}" if isinstance(value, str) else f"{key} {value:.4g}" for key, value in point.items()
    )
