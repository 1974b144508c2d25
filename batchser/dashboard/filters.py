"""What a visitor asks for, as the address says it: days, a queue, a role, an emotion, a status, a condition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Final
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pandas as pd

from batchser.errors import ConfigError
from batchser.results import night
from batchser.results.conditions import columns_of, parse_condition
from batchser.results.opening import Results

#: Of a dataset, so many days are shown until a visitor asks for others.
USUAL_DAYS: Final = 30
#: An own column is offered as a filter if it has so many values at most.
_MOST_CHOICES: Final = 50
OWN: Final = "own:"
_FIXED: Final = ("role", "emotion", "status", "reason")
_REASONS: Final = ("negative", "escalated", "worsening")


@dataclass(frozen=True, slots=True)
class Filters:
    """What is shown; empty texts stand for all. ``own`` are the manifest's columns."""

    first: date | None = None
    last: date | None = None
    chosen: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[str, str] = field(default_factory=dict)
    where: str = ""

    def query(self, **more: str | int) -> str:
        """Return the address's query that asks for the same, and for something more."""
        values = {"from": str(self.first or "")}  # an empty one asks for all days, none at all for the last ones
        values |= {name: str(value) for name, value in {"to": self.last, "where": self.where}.items() if value}
        values |= {name: value for name, value in self.chosen.items() if value}
        values |= {f"{OWN}{name}": value for name, value in self.own.items() if value}
        return urlencode(values | {name: str(value) for name, value in more.items()})


def read_filters(asked: Mapping[str, str], results: Results) -> Filters:
    """Read an address's query.

    Raises
    ------
    ConfigError : a day that is none, days in the wrong order
    """
    days = results.days()
    usual = str(date.fromisoformat(days[-1]) - timedelta(days=USUAL_DAYS - 1)) if len(days) > USUAL_DAYS else ""
    first, last = _day(asked.get("from", usual), "from"), _day(asked.get("to", ""), "to")
    if first and last and first > last:
        raise ConfigError(f"from {first} to {last}: expected the earlier day first")
    return Filters(
        first=first,
        last=last,
        chosen={name: asked.get(name, "") for name in _FIXED},
        own={name: asked.get(f"{OWN}{name}", "") for name in results.own_columns},
        where=asked.get("where", "").strip(),
    )


def _day(text: str, name: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise ConfigError(f"{name}: received {text!r}, expected a day such as 2026-11-20") from None


def filtered(results: Results, filters: Filters, zone: ZoneInfo) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Return the calls that are asked for, and what could be chosen on these days, by the filter's name.

    Raises
    ------
    ConfigError : the condition cannot be read
    """
    condition = None
    for part in parse_condition(filters.where, columns_of(results.calls.schema), "condition"):
        condition = part.expression if condition is None else condition & part.expression
    calls = night.read_calls(results, zone, filters.first, filters.last, condition)
    choices = {name: _values(calls[name]) for name in ("role", "emotion", "status")} | {"reason": list(_REASONS)}
    choices |= {f"{OWN}{name}": _values(calls[name]) for name in results.own_columns}
    for name, value in filters.chosen.items():
        if value and name == "reason":
            calls = calls[calls[night.REASONS].str.contains(value, regex=False)]
        elif value:
            calls = calls[calls[name] == value]
    for name, value in filters.own.items():
        if value:
            calls = calls[calls[name].map(str, na_action="ignore") == value]
    asked = {**filters.chosen, **{f"{OWN}{name}": value for name, value in filters.own.items()}}
    for name, values in choices.items():
        if asked.get(name) and asked[name] not in values:
            values.append(asked[name])  # what is asked for is shown, even if no call of these days has it
    return calls, {name: values for name, values in choices.items() if values}


def _values(column: pd.Series) -> list[str]:
    known = column.dropna()
    if not night.is_plain(known):
        return []
    values = known.unique()
    return sorted(map(str, values)) if len(values) <= _MOST_CHOICES else []
