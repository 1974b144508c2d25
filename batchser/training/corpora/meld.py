"""MELD: scenes of the series Friends, labelled line by line in three tables, one clip a line."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from batchser.errors import ConfigError
from batchser.training.corpora.clips import Clip, Fault, is_audio, walk
from batchser.training.corpora.labels import WORDS
from batchser.training.corpora.readers import Reading, corpus_folders

MELD_FOLDERS: Final = ("MELD", "MELD.Raw")

_SPLITS: Final = ("train", "dev", "test")
_COLUMNS: Final = ("Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
_Key = tuple[str, str, str]  # split, dialogue, utterance: the splits count their dialogues anew


def read_meld(data: Path) -> Reading:
    """MELD by its tables ``train_sent_emo.csv``, ``dev_…`` and ``test_…`` and its clips ``dia0_utt0``.

    Which table names a clip is told by its folder (``train_splits``, ``dev_splits_complete``,
    ``output_repeated_splits_test``); a clip in none of them belongs to the only table, where there is but one. The
    owners' split is not kept: the same actors speak in all three, so that it does not tell speakers apart.
    """
    folders = corpus_folders(data, MELD_FOLDERS)
    files = [(folder, path) for folder in folders for path in walk(folder)]
    tables = {split: path for _, path in reversed(files) for split in _SPLITS if path.name == f"{split}_sent_emo.csv"}
    audio, faults = _audio_by_key([(root, path) for root, path in files if is_audio(path)], list(tables))
    clips = []
    for split, table in tables.items():
        for number, row in enumerate(_rows(table), 1):
            key = (split, row["Dialogue_ID"].strip(), row["Utterance_ID"].strip())
            name = f"dia{key[1]}_utt{key[2]}"
            emotion = WORDS.get(row["Emotion"].strip().lower())
            path = audio.pop(key, None)
            if path is None:
                faults.append(Fault("MELD", str(table.parent / name), "missing", f"{table.name} lists it"))
            elif emotion is None:
                detail = f"{table.name}, row {number}, calls it {row['Emotion']!r}"
                faults.append(Fault("MELD", str(path), "unlabelled", detail))
            else:
                clips.append(Clip("MELD", path, row["Speaker"].strip(), emotion, None))
    faults += [Fault("MELD", str(path), "unlabelled", f"no {key[0]} table lists it") for key, path in audio.items()]
    return clips, faults


def _audio_by_key(files: Sequence[tuple[Path, Path]], splits: Sequence[str]) -> tuple[dict[_Key, Path], list[Fault]]:
    audio: dict[_Key, Path] = {}
    faults = []
    for root, path in files:
        match = re.fullmatch(r"dia([0-9]+)_utt([0-9]+)", path.stem)
        words = [word for part in path.relative_to(root).parts[:-1] for word in re.split(r"[^a-z]+", part.lower())]
        own = [split for split in _SPLITS if split in words] or (list(splits) if len(splits) == 1 else [])
        if not match or not own:
            expected = (
                "a name as dia0_utt0" if not match else "a folder of one of the three splits, such as train_splits"
            )
            faults.append(Fault("MELD", str(path), "unlabelled", f"expected {expected}"))
            continue
        first = audio.setdefault((own[-1], match[1], match[2]), path)
        if first != path:
            faults.append(Fault("MELD", str(path), "duplicate", f"the clip of the same name as {first}"))
    return audio, faults


def _rows(table: Path) -> list[dict[str, str]]:
    """The rows of a table; early copies hold apostrophes that are not UTF-8, in a column that is not read."""
    with table.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
        reader = csv.DictReader(lines)
        missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ConfigError(f"{table}: no column {', '.join(missing)}; expected the owners' own table")
        return list(reader)
