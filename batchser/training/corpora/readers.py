"""Clips from file names: RAVDESS, CREMA-D, TESS, SAVEE and EMO-DB as their owners lay them out.

Files are searched below the corpus's folder at any depth, whatever their audio suffix (copies may be .opus or .flac);
what a name says is read from the name alone. A name that does not parse is a fault, and so is a clip that lies there
twice under one name, as in archives that hold themselves again. The first is kept, lossless suffixes first.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from batchser.errors import ConfigError
from batchser.training.corpora.clips import Clip, Fault, is_audio, walk
from batchser.training.corpora.labels import (
    CREMA_D_CODES,
    CREMA_D_VOTES,
    EMO_DB_CODES,
    RAVDESS_CODES,
    SAVEE_CODES,
    WORDS,
)

#: A corpus as read: ``emotion`` of its clips is a value of ``labels``' mappings, ``fold`` None, votes by letter.
Reading = tuple[list[Clip], list[Fault]]

_LOSSLESS: Final = frozenset({".wav", ".wave", ".flac", ".aif", ".aiff"})
_EMO_DB_SPEAKERS: Final[Mapping[str, tuple[str, int]]] = {  # emodb.bilderbar.info, "Information about the speakers"
    "03": ("male", 31), "08": ("female", 34), "09": ("female", 21), "10": ("male", 32), "11": ("male", 26),
    "12": ("male", 30), "13": ("female", 32), "14": ("female", 35), "15": ("male", 25), "16": ("female", 31),
}  # fmt: skip
_TESS_AGES: Final = {"OAF": 64, "YAF": 26}


@dataclass(frozen=True, slots=True)
class Named:
    """What a file's name says: the clip's own name, its speaker, the emotion meant, and who that speaker is."""

    name: str
    speaker: str
    emotion: str
    sex: str | None = None
    age: int | None = None


Parse = Callable[[Path], Named | None]


def corpus_folders(data: Path, names: Sequence[str]) -> list[Path]:
    """Find the folders directly below ``data`` that bear one of the names, whatever their case."""
    wanted = {name.lower() for name in names}
    if not data.is_dir():
        raise ConfigError(f"corpora: {data}: no such folder; say where the corpora are with --data")
    return sorted(path for path in data.iterdir() if path.name.lower() in wanted and path.is_dir())


def read_named(data: Path, corpus: str, folders: Sequence[str], parse: Parse) -> Reading:
    """Read the clips whose names ``parse`` understands; it returns None for a file that is not this corpus's.

    ``parse`` raises ValueError, saying what it expected, for a name that says nothing.
    """
    paths = [path for folder in corpus_folders(data, folders) for path in walk(folder) if is_audio(path)]
    clips: dict[tuple[str, str], Clip] = {}
    faults = []
    for path in sorted(paths, key=lambda path: (path.suffix.lower() not in _LOSSLESS, path)):
        try:
            named = parse(path)
        except ValueError as error:
            faults.append(Fault(corpus, str(path), "unlabelled", f"expected {error}"))
            continue
        if named is None:
            continue
        clip = Clip(corpus, path, named.speaker, named.emotion, None, sex=named.sex, age=named.age)
        first = clips.setdefault((named.speaker, named.name), clip)
        if first is not clip:
            faults.append(Fault(corpus, str(path), "duplicate", f"the clip of the same name as {first.path}"))
    return list(clips.values()), faults


def parse_ravdess(path: Path, channel: str) -> Named | None:
    """``03-01-06-01-02-01-12``: modality, channel (01 speech, 02 song), emotion, intensity, statement, take, actor.

    Only modality 03 (audio alone) is read: 01 (video with sound) holds the same takes again, 02 has no sound. Actors of
    odd number are men.
    """
    match = re.fullmatch(r"(0[123])-(0[12])-(0[1-8])-0[12]-0[12]-0[12]-([0-9]{2})", path.stem)
    if not match:
        raise ValueError("seven numbers as in 03-01-06-01-02-01-12")
    if match[1] != "03" or match[2] != channel:
        return None
    sex = "male" if int(match[4]) % 2 else "female"
    return Named(path.stem, match[4], RAVDESS_CODES[match[3]], sex)


def read_ravdess_speech(data: Path) -> Reading:
    """RAVDESS's spoken clips; songs that lie among them are passed over."""
    return read_named(data, "RAVDESS", RAVDESS_FOLDERS, lambda path: parse_ravdess(path, "01"))


def read_ravdess_song(data: Path) -> Reading:
    """RAVDESS's sung clips; speech that lies among them is passed over."""
    return read_named(data, "RAVDESS-song", RAVDESS_FOLDERS, lambda path: parse_ravdess(path, "02"))


def parse_tess(path: Path) -> Named:
    """``OAF_back_angry``: the older or younger actress, the word, the emotion. One original is named ``OA_bite_…``."""
    match = re.fullmatch(r"(OAF?|YAF)_([a-z]+)_([a-z_]+)", path.stem, re.IGNORECASE)
    if not match or match[3].lower() not in WORDS:
        raise ValueError("speaker, word and emotion as in OAF_back_angry")
    speaker = "YAF" if match[1].upper() == "YAF" else "OAF"
    emotion = WORDS[match[3].lower()]
    return Named(f"{match[2].lower()}_{emotion}", speaker, emotion, "female", _TESS_AGES[speaker])


def read_tess(data: Path) -> Reading:
    """TESS, two actresses."""
    return read_named(data, "TESS", TESS_FOLDERS, parse_tess)


def parse_savee(path: Path) -> Named:
    """``DC_a01``, or ``a01`` in a folder ``DC``: one of four men, emotion, sentence."""
    match = re.fullmatch(r"(?:(DC|JE|JK|KL)_)?(sa|su|a|d|f|h|n)([0-9]{2})", path.stem)
    speaker = (match[1] or path.parent.name) if match else ""
    if not match or speaker not in ("DC", "JE", "JK", "KL"):
        raise ValueError("speaker, emotion and sentence as in DC_a01, or a01 in a folder DC, JE, JK or KL")
    return Named(f"{match[2]}{match[3]}", speaker, SAVEE_CODES[match[2]], "male")


def read_savee(data: Path) -> Reading:
    """SAVEE, four men aged 27 to 31 (whose age is whose is not stated)."""
    return read_named(data, "SAVEE", SAVEE_FOLDERS, parse_savee)


def parse_emo_db(path: Path) -> Named:
    """``03a01Fa``: speaker, text, the German emotion's letter, version."""
    match = re.fullmatch(r"([0-9]{2})([ab][0-9]{2})([WLEAFTN])([a-z]?)", path.stem)
    if not match or match[1] not in _EMO_DB_SPEAKERS:
        raise ValueError("speaker, text, emotion and version as in 03a01Fa")
    return Named(path.stem, match[1], EMO_DB_CODES[match[3]], *_EMO_DB_SPEAKERS[match[1]])


def read_emo_db(data: Path) -> Reading:
    """EMO-DB, five men and five women, in German; its boredom is left to ``LabelOptions``."""
    return read_named(data, "EMO-DB", EMO_DB_FOLDERS, parse_emo_db)


def read_crema_d(data: Path) -> Reading:
    """CREMA-D with sex and age, where the owners' VideoDemographics.csv lies in its folder or in ``data``.

    The folder AudioMP3, which holds AudioWAV's clips again at a lower quality, is not read where AudioWAV is.
    """
    folders = corpus_folders(data, CREMA_D_FOLDERS)
    has_wav = any(path.name == "AudioWAV" for folder in folders for path in (folder, *folder.glob("*")))
    actors = {
        row["ActorID"]: (row["Sex"].lower(), int(row["Age"]) if row["Age"].isdecimal() else None)
        for row in _rows_of(data, "VideoDemographics.csv", ("ActorID", "Sex", "Age"))
    }

    def parse(path: Path) -> Named | None:
        if has_wav and "AudioMP3" in path.parts:
            return None
        # One original ends in _X where XX is meant (1040_ITH_SAD_X).
        match = re.fullmatch(r"(1[0-9]{3})_([A-Z]{3})_(ANG|DIS|FEA|HAP|NEU|SAD)_(LO|MD|HI|XX?)", path.stem)
        if not match:
            raise ValueError("actor, sentence, emotion and level as in 1001_DFA_ANG_XX")
        return Named(path.stem, match[1], CREMA_D_CODES[match[3]], *actors.get(match[1], (None, None)))

    return read_named(data, "CREMA-D", CREMA_D_FOLDERS, parse)


def crema_d_votes(data: Path) -> dict[str, dict[str, int]]:
    """Listeners' votes from the voice alone, by clip name, from the owners' tables; empty where neither is there.

    A row of ``tabulatedVotes.csv`` is named 100000 x queryType + clip number, and queryType 1 is the voice alone (2 the
    face, 3 both); it leaves out answers that took over 10 s. ``finishedResponses.csv``, taken where the first is not
    there, has one row an answer with its ``queryType``. Source: the owners' README.md and tabulateVotesV2.r.
    """
    votes: dict[str, dict[str, int]] = {}
    for row in _rows_of(data, "tabulatedVotes.csv", ("", "fileName", *CREMA_D_VOTES)):
        if row[""].startswith("1") and len(row[""]) == 6:
            counts = {label: int(row[letter]) for letter, label in CREMA_D_VOTES.items()}
            votes[row["fileName"]] = counts
    if votes:
        return votes
    for row in _rows_of(data, "finishedResponses.csv", ("clipName", "queryType", "respEmo")):
        label = CREMA_D_VOTES.get(row["respEmo"].strip()[:1])
        if row["queryType"] == "1" and label:
            own = votes.setdefault(Path(row["clipName"]).stem, {})
            own[label] = own.get(label, 0) + 1
    return votes


def _rows_of(data: Path, name: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of the first table of that name in CREMA-D's folders or in ``data`` itself."""
    folders = corpus_folders(data, CREMA_D_FOLDERS)
    places = [path for folder in folders for path in walk(folder) if path.name == name]
    places += [data / name] if (data / name).is_file() else []
    if not places:
        return
    with places[0].open(newline="", encoding="utf-8-sig", errors="replace") as lines:
        reader = csv.DictReader(lines)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise ConfigError(f"{places[0]}: no column {', '.join(missing)}; expected the owners' own table")
        yield from reader


#: Folder names as the owners' archives, and the copies of them that people mostly fetch, unpack to.
CREMA_D_FOLDERS: Final = ("CREMA-D", "CREMA-D-master", "AudioWAV")
RAVDESS_FOLDERS: Final = ("RAVDESS", "RAVDESS-song", "Audio_Speech_Actors_01-24", "Audio_Song_Actors_01-24")
TESS_FOLDERS: Final = ("TESS", "TESS Toronto emotional speech set data")
SAVEE_FOLDERS: Final = ("SAVEE", "AudioData")
EMO_DB_FOLDERS: Final = ("EMO-DB", "EMODB")
