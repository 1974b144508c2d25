"""A corpus small enough to train on in a test, in CREMA-D's layout, with sounds for the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from composed import write_csv
from conftest import LABELS, RATE_HZ, speechlike, write

from batchser.training.augment.sounds import composed_music, generated_noise


def make_clip(path: Path, speaker: int, emotion: int, take: int) -> None:
    """One second of a voice whose swell depends on the emotion."""
    t = np.arange(16_000) / 16_000
    line = speechlike(1.0, 100 * speaker + 10 * emotion + take, 16_000)
    swell = 1 + 0.8 * np.sin(2 * np.pi * (1 + emotion) * t)
    subtype = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, (line * swell).astype(np.float32), 16_000, **subtype)


def make_corpus(folder: Path) -> Path:
    """A corpora's folder: six speakers in two folds, six emotions, two takes, music and noise."""
    rows = []
    (folder / "CREMA-D").mkdir()
    for speaker in range(6):
        for emotion, label in enumerate(LABELS):
            for take in range(2):
                suffix = "opus" if speaker == 0 else "wav"
                path = f"CREMA-D/{1000 + speaker}_{['DFA', 'IEO'][take]}_{label[:3].upper()}_XX.{suffix}"
                make_clip(folder / path, speaker, emotion, take)
                votes = {f"votes_{name}": int(name == label) for name in LABELS}
                row = {"corpus": "CREMA-D", "path": path, "speaker": 1000 + speaker, "emotion": label}
                rows.append(row | {"intensity": "XX", "duration_s": 1.0, "fold": speaker % 2} | votes)
    write_csv(folder / "index.csv", [*rows, rows[0] | {"corpus": "TESS", "path": "TESS/none.wav", "fold": ""}])
    rng = np.random.default_rng(0)
    for kind, make, names in (
        ("music", composed_music, ["waltz-1", "waltz-2", "march-1", "hymn-1", "reel-1"]),
        ("noise", generated_noise, ["street-1"]),
    ):
        (folder / kind).mkdir()
        for name in names:
            write(folder / kind / f"{name}.wav", 0.3 * make(rng, 4 * RATE_HZ, RATE_HZ))
    (folder / "music" / "README.md").write_text("licences")
    return folder
