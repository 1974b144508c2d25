"""Composed calls for tests: two generated calls with their truth, as ``make_calls`` tools write them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from conftest import call, ring, silence, speechlike, write


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write rows under the keys of the first one."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def make_calls(folder: Path, customers: tuple[str, str] = ("CREMA-D/1001", "CREMA-D/1003")) -> Path:
    """A folder of composed calls: one in stereo (agent, customer), one mono with its truth."""
    folder.mkdir()
    agent = np.concatenate([speechlike(6, 1), silence(9)])
    customer = np.concatenate([silence(6), speechlike(3, 2), ring(3), silence(3)])
    write(folder / "a.wav", agent, customer)
    write(folder / "b.wav", call(3))
    write_csv(
        folder / "manifest.csv",
        [
            {"call_id": "a", "path": "a.wav", "roles": "agent,customer"},
            {"call_id": "b", "path": "b.wav", "roles": "mixed"},
        ],
    )
    one, two = customers
    turns = [
        ("a", 0, 0, 6, "speech", "neutral", "agent"), ("a", 1, 6, 9, "speech", "angry", one),
        ("a", 1, 9, 12, "ring", "", ""), ("b", 1, 0, 3, "speech", "sad", two), ("b", 1, 3, 6, "ring", "", ""),
        ("b", 0, 9, 12, "speech", "happy", "agent"), ("b", 1, 12, 15, "music", "", ""),
    ]  # fmt: skip
    names = ("call_id", "channel", "start_s", "end_s", "kind", "emotion", "speaker")
    write_csv(folder / "turns.csv", [dict(zip(names, turn, strict=True)) for turn in turns])
    return folder
