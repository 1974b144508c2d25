"""Tables for spreadsheets, which take some texts for formulas."""

from __future__ import annotations

from typing import Any, Final

#: A cell that begins so, blanks aside, is a formula to one spreadsheet or another.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def spreadsheet_safe(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: numbers as they are, texts with a ' before a sign."""
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA) else value
