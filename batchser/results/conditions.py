"""``negativity > 0.8 and queue == 'billing'`` → an Arrow expression. Python's grammar, but nothing is ever evaluated.

What may stand in a condition: names of columns (in backticks where they have blanks), numbers, texts, ``True`` and
``False``, comparisons (chains too), ``in`` and ``not in`` lists, ``is None``, ``and``, ``or``, ``not``, parentheses.
Moments are texts in ISO 8601, UTC where no zone is given. A comparison with a null is never met.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import reduce
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from batchser.errors import ConfigError

_MOST_CHARACTERS: Final = 4000
_QUOTED: Final = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|`([^`]+)`""")
_COMPARE: Final[Mapping[type, Callable[[Any, Any], pc.Expression]]] = {
    ast.Eq: pc.equal, ast.NotEq: pc.not_equal, ast.Lt: pc.less, ast.LtE: pc.less_equal, ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}  # fmt: skip
_ORDER: Final = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_ALLOWED: Final = "expected comparisons of columns with numbers or texts, joined by and, or, not"


@dataclass(frozen=True, slots=True)
class Column:
    """What a name in a condition stands for: its type, and the expression that gives it."""

    type: pa.DataType
    expression: pc.Expression


@dataclass(frozen=True, slots=True)
class Condition:
    """A part of a condition that must hold, and the columns that it names."""

    expression: pc.Expression
    names: frozenset[str]


def parse_condition(text: str, columns: Mapping[str, Column], what: str = "--where") -> list[Condition]:
    """Return the parts of a condition that must all hold: what ``and`` joins on the outside.

    Parameters
    ----------
    text : the condition; an empty one has no parts
    columns : what may be named
    what : where the condition was given, for messages

    Raises
    ------
    ConfigError : it cannot be read, names no column, or compares what cannot be compared
    """
    if not text.strip():
        return []
    return _Parser(text, columns, what).parts()


def columns_of(schema: pa.Schema) -> dict[str, Column]:
    """Return every column of a table as what a condition may name."""
    return {field.name: Column(_plain(field.type), pc.field(field.name)) for field in schema}


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


class _Parser:
    def __init__(self, text: str, columns: Mapping[str, Column], what: str) -> None:
        self._text, self._columns, self._what = text, columns, what
        self._quoted: dict[str, str] = {}  # placeholders of names in backticks
        self._names: set[str] = set()

    def parts(self) -> list[Condition]:
        if len(self._text) > _MOST_CHARACTERS:
            raise self._fault(f"has {len(self._text)} characters, expected at most {_MOST_CHARACTERS}")
        source = _QUOTED.sub(self._placeholder, self._text.strip())
        try:
            body = ast.parse(source, mode="eval").body
            outer = body.values if isinstance(body, ast.BoolOp) and isinstance(body.op, ast.And) else [body]
            return [self._part(node) for node in outer]
        except SyntaxError as error:
            raise self._fault(f"cannot be read ({error.msg}); {_ALLOWED}") from None
        except (RecursionError, MemoryError, ValueError) as error:
            raise self._fault(f"cannot be read ({error or type(error).__name__}); {_ALLOWED}") from None
        except (pa.ArrowException, NotImplementedError) as error:
            raise self._fault(f"cannot be compared so ({error})") from None

    def _placeholder(self, found: re.Match[str]) -> str:
        if found[1] is not None:
            return found[1]
        name = f"_batchser_quoted_{len(self._quoted)}"
        self._quoted[name] = found[2]
        return name

    def _fault(self, sentence: str) -> ConfigError:
        return ConfigError(f"{self._what} {self._text!r}: {sentence}")

    def _part(self, node: ast.expr) -> Condition:
        self._names = set()
        return Condition(self._truth(node), frozenset(self._names))

    def _truth(self, node: ast.expr) -> pc.Expression:
        if isinstance(node, ast.BoolOp):
            join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
            return reduce(join, [self._truth(value) for value in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self._truth(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = zip(sides, node.ops, sides[1:], strict=False)
            return reduce(pc.and_kleene, [self._comparison(left, op, right) for left, op, right in pairs])
        if isinstance(node, ast.Name):
            column = self._column(node)
            if pa.types.is_boolean(column.type):
                return column.expression
            raise self._fault(f"{self._name(node)!r} is {_said(column.type)}, and no condition by itself; compare it")
        raise self._fault(f"{ast.unparse(node)!r} is no condition; {_ALLOWED}")

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(left, ast.Name) and isinstance(right, ast.Constant) and right.value is None):
                raise self._fault("`is` is for None alone: `trend is not None`")
            null = pc.is_null(self._column(left).expression)
            return null if isinstance(op, ast.Is) else ~null
        if isinstance(op, ast.In | ast.NotIn):
            return self._membership(left, right, negated=isinstance(op, ast.NotIn))
        if isinstance(left, ast.Name) and isinstance(right, ast.Name):
            one, other = self._column(left), self._column(right)
            if _family(one.type) != _family(other.type):
                kinds = f"{_said(one.type)} and {self._name(right)!r} is {_said(other.type)}"
                raise self._fault(f"{self._name(left)!r} is {kinds}: they cannot be compared")
            return _COMPARE[type(op)](one.expression, other.expression)
        if isinstance(left, ast.Name):
            column = self._column(left)
            return _COMPARE[type(op)](column.expression, self._value(right, left, column.type, op))
        if isinstance(right, ast.Name):
            column = self._column(right)
            return _COMPARE[type(op)](pc.scalar(self._value(left, right, column.type, op)), column.expression)
        raise self._fault(f"{ast.unparse(left)!r} and {ast.unparse(right)!r}: one of them must be a column")

    def _membership(self, left: ast.expr, right: ast.expr, *, negated: bool) -> pc.Expression:
        if not isinstance(left, ast.Name) or not isinstance(right, ast.List | ast.Tuple | ast.Set):
            raise self._fault("`in` is for a column and a list: `queue in ['billing', 'sales']`")
        self._column(left)
        if not right.elts:
            raise self._fault("`in` needs a list with something in it")
        found = reduce(pc.or_kleene, [self._comparison(left, ast.Eq(), item) for item in right.elts])
        return ~found if negated else found

    def _name(self, node: ast.Name) -> str:
        return self._quoted.get(node.id, node.id)

    def _column(self, node: ast.Name) -> Column:
        name = self._name(node)
        if name not in self._columns:
            near = difflib.get_close_matches(name, self._columns, n=3)
            said = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(self._columns))}"
            raise self._fault(f"there is no column {name!r}; {said}")
        self._names.add(name)
        return self._columns[name]

    def _value(self, node: ast.expr, beside: ast.Name, kind: pa.DataType, op: ast.cmpop) -> pa.Scalar:
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            sign, node = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
        if not isinstance(node, ast.Constant):
            raise self._fault(f"{ast.unparse(node)!r} is neither a column nor a number or text")
        value, name = node.value, self._name(beside)
        family = _family(kind)
        if family == "number" and isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value) or abs(value) >= 2**63:
                raise self._fault(f"{value!r} is no number that a table holds")
            return pa.scalar(sign * value)
        if family == "text" and isinstance(value, str):
            return pa.scalar(value, pa.string())
        if family == "truth" and isinstance(value, bool):
            if isinstance(op, _ORDER):
                raise self._fault(f"{name!r} is true or false, and not more or less")
            return pa.scalar(value)
        if family == "time" and isinstance(value, str):
            return self._moment(value, name, kind)
        received = "None (use `is None`)" if value is None else repr(value)
        raise self._fault(f"column {name!r}: received {received}, expected {_said(kind)}")

    def _moment(self, text: str, name: str, kind: pa.DataType) -> pa.Scalar:
        try:
            if pa.types.is_date(kind):
                return pa.scalar(date.fromisoformat(text), kind)
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise self._fault(f"column {name!r}: received {text!r}, expected ISO 8601: 2026-11-20T08:00") from None
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return pa.scalar(aware if getattr(kind, "tz", None) else aware.replace(tzinfo=None), kind)


def _said(kind: pa.DataType) -> str:
    """Return what a column's values are called."""
    words = {"number": "a number", "text": "a text in quotes", "truth": "True or False"}
    words["time"] = "a time such as '2026-11-20T08:00'"
    return words.get(_family(kind), f"nothing that could be compared ({kind})")


def _family(kind: pa.DataType) -> str:
    """Return what a column's values can be compared with."""
    if pa.types.is_boolean(kind):
        return "truth"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    return "time" if pa.types.is_timestamp(kind) or pa.types.is_date(kind) else "other"
