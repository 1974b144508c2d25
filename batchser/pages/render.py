"""Templates → pages. Every text of others is escaped; what is data for scripts cannot end its element."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from batchser import __version__
from batchser.pages.charts import UNSURE, clock, look_of

_SOME = "some"


def page(template: str, **values: Any) -> str:
    """Fill a template of this package."""
    return _environment().get_template(template).render(**values)


def asset(name: str) -> str:
    """Return a style sheet or script of this package as text."""
    return (resources.files("batchser.pages") / "assets" / name).read_text(encoding="utf-8")


def plotly_js() -> str:
    """Return the charts' library, which travels with its Python package."""
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    return text


def script_hash(text: str) -> str:
    """Return what a content security policy calls a script by."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def as_json(value: Any) -> Markup:
    """Return a value as JSON that can stand in a script element, whatever texts it holds."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  nothing in it can end the element now


def packed_columns(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return a table's columns as JSON, deflated, in base64: what table.js unpacks."""
    text = json.dumps(columns, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("batchser.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"json": as_json, "percent": _percent, "clock": clock, "number": _number}
    environment.globals |= {"version": __version__, "look_of": look_of, "UNSURE": UNSURE}
    return environment


def _percent(share: float | None) -> str:
    return "–" if share is None or share != share else f"{share * 100:.0f} %"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or value != value else f"{value:,.{digits}f}"
