"""What pages must never have: a hostile text that is more than a text."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser

#: Ids and queues as an enemy would choose them.
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "=cmd|' /C calc'!A0",
    '"><svg onload=alert(3)>',
    "{{ 7 * 7 }}",
    "+49 170 1234567",
    "<b>bold</b> &\u2028 'quoted'",
    "<a href=javascript:alert(4)>x</a>",
)


class Page(HTMLParser):
    """Elements of a page by their tag, with attributes; texts of scripts by their id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs).get("id") or f"script-{len(self.scripts)}"
            self.scripts[self._script] = ""

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.text += f" {data}"
        else:
            self.scripts[self._script] += data

    @property
    def words(self) -> str:
        """All that can be read, with single blanks."""
        return " ".join(self.text.split())

    def figures(self) -> dict[str, dict]:
        """The charts of the page by their id."""
        wanted = [attrs["data-figure"] for tag, attrs in self.elements if "data-figure" in attrs]
        return {name: json.loads(self.scripts[name]) for name in wanted}


def assert_inert(page: Page) -> None:
    """No element and no attribute comes from a hostile name."""
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]
    assert not [tag for tag, _ in page.elements if tag in ("b", "img", "iframe", "object", "embed")]
    for _, attrs in page.elements:
        for name in ("href", "src", "action"):
            assert re.match(r"(/|#|data:,|[\w.-]+\.(wav|mp3)$|$)", attrs.get(name) or ""), attrs
    assert "49" not in re.findall(r"queue (\d+)", page.text)  # templates in names are not filled


def assert_no_formulas(text: str) -> None:
    """No cell of a CSV is a formula to a spreadsheet; numbers may have their sign."""
    for row in csv.reader(io.StringIO(text)):
        for cell in row:
            assert not cell.startswith(("=", "+", "@", "\t", "\r")), cell
            assert not cell.startswith("-") or re.fullmatch(r"-?[\d.e-]+", cell), cell
