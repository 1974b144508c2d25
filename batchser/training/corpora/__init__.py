"""Corpora: labelled clips from the layouts that their owners publish, and from a company's own manifest.

A reader takes the corpora's folder and returns Clips and Faults; READERS has one per corpus, with what a model card
must say of it; a corpus is added by adding its reader. ``labels`` has the one label space, ``checks`` finds what is
wrong with clips, ``manifest`` reads the manifest and ``index.csv``, whose folds and votes are taken where it is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from batchser.errors import ConfigError
from batchser.training.corpora import readers
from batchser.training.corpora.checks import check_clips
from batchser.training.corpora.clips import (
    FAULTS,
    SILENT_DBFS,
    Clip,
    Fault,
    check_audio,
    clips_key,
    fault_rows,
    find_audio,
    read_clip,
    read_samples,
    render_faults,
    unreadable,
)
from batchser.training.corpora.labels import LABELS, SIX_LABELS, LabelOptions
from batchser.training.corpora.manifest import Index, is_manifest, read_index, read_manifest
from batchser.training.corpora.meld import read_meld
from batchser.training.corpora.readers import Reading

__all__ = [
    "FAULTS",
    "LABELS",
    "READERS",
    "SILENT_DBFS",
    "SIX_LABELS",
    "Clip",
    "Corpus",
    "CorpusRead",
    "Fault",
    "LabelOptions",
    "check_audio",
    "clips_key",
    "corpus_of",
    "fault_rows",
    "find_audio",
    "read_clip",
    "read_corpora",
    "read_samples",
    "render_faults",
    "unreadable",
]


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a model card must say of the data behind a model, how its files look, and how they are read."""

    name: str
    licence: str
    commercial_use: bool
    note: str
    read: Callable[[Path], Reading]
    layout: str = ""


@dataclass(frozen=True, slots=True)
class CorpusRead:
    """Corpora as read: clips by corpus and path, all that was not taken, and why.

    ``faults`` are clips that are wrong; ``dropped`` counts sound clips whose label the LabelOptions drop, by label.
    """

    clips: list[Clip]
    faults: tuple[Fault, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


_CREMA_D = Corpus(
    "CREMA-D",
    "ODbL 1.0 + DbCL 1.0",
    commercial_use=True,
    note="actors speak twelve English sentences; human listeners, from the voice alone, name the emotion meant in "
    "40.9 % of the clips.",
    read=readers.read_crema_d,
    layout="CREMA-D/ with files like AudioWAV/1001_DFA_ANG_XX.wav",
)
_RAVDESS = Corpus(
    "RAVDESS",
    "CC BY-NC-SA 4.0",
    commercial_use=False,
    note="24 North American actors speak two sentences; the owners sell licences for commercial use.",
    read=readers.read_ravdess_speech,
    layout="RAVDESS/ with files like Actor_01/03-01-06-01-02-01-01.wav",
)
_RAVDESS_SONG = Corpus(
    "RAVDESS-song",
    "CC BY-NC-SA 4.0",
    commercial_use=False,
    note="23 of RAVDESS's actors sing the two sentences (no disgust, no surprise): singing is not speech.",
    read=readers.read_ravdess_song,
    layout="RAVDESS/ or RAVDESS-song/ with files like Actor_01/03-02-06-01-02-01-01.wav",
)
_TESS = Corpus(
    "TESS",
    "CC BY-NC-ND 4.0",
    commercial_use=False,
    note="two Toronto actresses, of 26 and 64 years, say 200 words in one carrier phrase: two voices, no more.",
    read=readers.read_tess,
    layout="TESS/ with files like OAF_angry/OAF_back_angry.wav",
)
_SAVEE = Corpus(
    "SAVEE",
    "research use only, on registration with the University of Surrey",
    commercial_use=False,
    note="four British men aged 27 to 31 read 120 English sentences each.",
    read=readers.read_savee,
    layout="SAVEE/ with files like DC_a01.wav or AudioData/DC/a01.wav",
)
_MELD = Corpus(
    "MELD",
    "GPL-3.0 for the annotations; the sound is the series Friends', whose rights are not the owners' to give",
    commercial_use=False,
    note="lines of a television series with music and laughter behind them, labelled with text and picture at hand; "
    "the owners' split is not kept, as the same actors speak in all of its parts.",
    read=read_meld,
    layout="MELD/ with train_sent_emo.csv and files like train_splits/dia0_utt0.mp4",
)
_EMO_DB = Corpus(
    "EMO-DB",
    "no licence stated; free to download, to be cited as Burkhardt et al. 2005 where used for research",
    commercial_use=False,
    note="ten German actors speak ten German sentences; the owners left out what listeners did not recognise, so that "
    "scores on it are high. Treated as non-commercial for want of a licence.",
    read=readers.read_emo_db,
    layout="EMO-DB/ with files like wav/03a01Fa.wav",
)
READERS: Final[Mapping[str, Corpus]] = {
    corpus.name: corpus for corpus in (_CREMA_D, _RAVDESS, _RAVDESS_SONG, _TESS, _SAVEE, _MELD, _EMO_DB)
}


def corpus_of(name: str) -> Corpus:
    """Give the corpus of a recipe: one of READERS, or a manifest of one's own (a path in .csv or .parquet).

    Raises
    ------
    ConfigError : neither
    """
    if name in READERS:
        return READERS[name]
    if not is_manifest(name):
        raise ConfigError(_unknown([name]))
    return Corpus(
        name,
        "your own",
        commercial_use=True,
        note="your own labelled recordings: batchser knows of no limit on their use.",
        read=lambda data: read_manifest(data / name),
        layout="recordings that the manifest names",
    )


def read_corpora(data: Path, names: Sequence[str], options: LabelOptions | None = None) -> CorpusRead:
    """Read all sound clips of the named corpora.

    Parameters
    ----------
    data
        The corpora's folder. Its ``index.csv``, where there is one, gives folds and votes by path; else the folds are
        None, to be made by the protocol.
    names
        Names in READERS, or paths of manifests (.csv, .parquet), absolute or relative to ``data``.
    options
        What becomes of labels that not every model has; by default boredom alone is dropped.

    Raises
    ------
    ConfigError
        A corpus without a reader, one without clips under ``data``, or tables that cannot be read.
    """
    unknown = [name for name in names if name not in READERS and not is_manifest(name)]
    if unknown:
        raise ConfigError(_unknown(unknown))
    options = options or LabelOptions()
    index = read_index(data)
    clips: list[Clip] = []
    faults: list[Fault] = []
    dropped: Counter[str] = Counter()
    for name in names:
        found, wrong = corpus_of(name).read(data)
        wrong += _not_there(name, index)
        if not found:
            raise ConfigError(_nothing(data, name, wrong))
        votes = readers.crema_d_votes(data) if name == "CREMA-D" else {}
        for clip in found:
            label = options.label_of(clip.emotion)
            if label is None:
                dropped[clip.emotion] += 1
                continue
            cast = options.votes_of(votes.get(clip.path.stem) or index.votes.get(clip.path, {}))
            fold = index.folds.get(clip.path) if clip.fold is None else clip.fold
            clips.append(replace(clip, emotion=label, votes=cast, fold=fold))
        faults += wrong
    kept, wrong = check_clips(clips)
    if not kept:
        raise ConfigError(f"corpora: no clip of {', '.join(names)} is left\n{render_faults(faults + wrong)}")
    return CorpusRead(kept, tuple(faults + wrong), dict(dropped))


def _not_there(name: str, index: Index) -> list[Fault]:
    paths = [path for path in index.listed.get(name, ()) if not path.is_file()]
    return [Fault(name, str(path), "missing", "index.csv lists it") for path in paths]


def _nothing(data: Path, name: str, faults: Sequence[Fault]) -> str:
    told = f"; {len(faults)} files were not taken, such as {faults[0].path} ({faults[0].detail})" if faults else ""
    return f"corpora: {data} holds no clip of {name}{told}; expected {corpus_of(name).layout}; say where with --data"


def _unknown(names: Sequence[str]) -> str:
    return (
        f"corpora: received {', '.join(names)}; readers exist for {', '.join(READERS)}, and for a manifest of your own "
        "(.csv or .parquet)"
    )
