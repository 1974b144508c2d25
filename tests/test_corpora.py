"""Corpora made here in each owner's layout: names, labels, votes, folds, a manifest, and every fault in one table."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import speechlike

from batchser.errors import AudioError, ConfigError
from batchser.training.corpora import (
    FAULTS,
    LABELS,
    READERS,
    SIX_LABELS,
    Clip,
    Fault,
    LabelOptions,
    check_audio,
    corpus_of,
    fault_rows,
    find_audio,
    read_clip,
    read_corpora,
    read_samples,
    render_faults,
    unreadable,
)

RATE_HZ = 8000
NUM_MADE = iter(range(10**6))


def make(path: Path, seconds: float = 0.3, like: Path | None = None) -> Path:
    """A sound of its own, or a copy of another in other bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = speechlike(seconds, next(NUM_MADE), RATE_HZ) if like is None else soundfile.read(like)[0]
    kind = {".opus": {"format": "OGG", "subtype": "OPUS"}, ".flac": {"format": "FLAC"}}
    soundfile.write(path, samples, RATE_HZ, **kind.get(path.suffix, {}))
    return path


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def told(read) -> dict[str, tuple]:
    """What was read, by file name."""
    return {clip.path.name: (clip.speaker, clip.emotion, clip.sex, clip.age) for clip in read.clips}


def faults_of(read) -> list[tuple[str, str]]:
    return sorted((fault.fault, Path(fault.path).name) for fault in read.faults)


# ---------------------------------------------------------------------------------------------- the owners' layouts

LAYOUTS: dict[str, dict[str, tuple | None]] = {
    "RAVDESS": {
        "RAVDESS/Actor_12/03-01-06-01-02-01-12.wav": ("12", "fearful", "female", None),
        "RAVDESS/Actor_01/03-01-08-02-02-02-01.wav": ("01", "surprised", "male", None),
        "RAVDESS/03-01-02-01-01-01-24.flac": ("24", "calm", "female", None),
        "RAVDESS/Actor_01/03-02-03-01-01-01-01.wav": None,  # a song
        "RAVDESS/Video_Speech_Actor_01/01-01-03-01-01-01-01.mp4": None,  # the same take as a video
        "RAVDESS/Video_Speech_Actor_01/02-01-03-01-01-01-01.mp4": None,
    },
    "RAVDESS-song": {
        "RAVDESS-song/Actor_02/03-02-05-01-01-01-02.wav": ("02", "angry", "female", None),
        "Audio_Song_Actors_01-24/Actor_03/03-02-04-01-01-01-03.wav": ("03", "sad", "male", None),
        "RAVDESS/Actor_03/03-02-01-01-01-01-03.wav": ("03", "neutral", "male", None),
        "RAVDESS/Actor_03/03-01-01-01-01-01-03.wav": None,
    },
    "CREMA-D": {
        "CREMA-D/AudioWAV/1001_DFA_ANG_XX.wav": ("1001", "angry", None, None),
        "CREMA-D/AudioWAV/1040_ITH_SAD_X.wav": ("1040", "sad", None, None),  # so named by its owners
        "CREMA-D/AudioWAV/1002_IEO_HAP_HI.wav": ("1002", "happy", None, None),
        "CREMA-D/AudioMP3/1001_DFA_ANG_XX.mp3": None,
    },
    "TESS": {
        "TESS Toronto emotional speech set data/OAF_angry/OAF_back_angry.wav": ("OAF", "angry", "female", 64),
        "TESS Toronto emotional speech set data/OAF_Pleasant_surprise/OAF_bar_ps.wav": (
            "OAF", "surprised", "female", 64,
        ),
        "TESS/YAF_bar_fear.opus": ("YAF", "fearful", "female", 26),
        "TESS/YAF_neutral/OA_bite_neutral.wav": ("OAF", "neutral", "female", 64),  # so named by its owners
        "TESS/YAF_mob_pleasant_surprise.wav": ("YAF", "surprised", "female", 26),
    },
    "SAVEE": {
        "SAVEE/DC_a01.wav": ("DC", "angry", "male", None),
        "SAVEE/AudioData/JE/sa01.wav": ("JE", "sad", "male", None),
        "SAVEE/AudioData/KL/su15.wav": ("KL", "surprised", "male", None),
        "AudioData/JK/n30.wav": ("JK", "neutral", "male", None),
    },
    "EMO-DB": {
        "emodb/wav/03a01Fa.wav": ("03", "happy", "male", 31),
        "emodb/wav/08b10Wd.wav": ("08", "angry", "female", 34),
        "emodb/wav/16a02Tb.wav": ("16", "sad", "female", 31),
        "emodb/wav/10a07Ad.wav": ("10", "fearful", "male", 32),
        "emodb/wav/13b09Ed.wav": ("13", "disgust", "female", 32),
        "emodb/wav/09a05Nb.wav": ("09", "neutral", "female", 21),
    },
}  # fmt: skip


@pytest.mark.parametrize("corpus", LAYOUTS)
def test_clips_are_found_in_the_owners_layout(corpus, tmp_path):
    for name in LAYOUTS[corpus]:
        if name.endswith(".mp4"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"not looked into")
        else:
            make(tmp_path / name)
    (tmp_path / next(iter(LAYOUTS[corpus]))).with_name("._hidden.wav").write_bytes(b"macOS")
    read = read_corpora(tmp_path, [corpus])
    assert told(read) == {Path(name).name: row for name, row in LAYOUTS[corpus].items() if row is not None}
    assert read.faults == ()
    assert read.dropped == {}
    assert {(clip.corpus, clip.fold, clip.votes) for clip in read.clips} == {(corpus, None, ())}


MELD_ROWS = {
    "train": [("0", "0", "Chandler", "neutral"), ("0", "1", "The Interviewer", "joy"), ("125", "3", "Joey", "anger")],
    "dev": [("0", "0", "Ross", "sadness"), ("0", "1", "Ross", "fear")],
    "test": [("0", "0", "Mark", "disgust"), ("0", "1", "Monica", "surprise"), ("0", "2", "Joey", "glee")],
}
MELD_FOLDERS = {"train": "train/train_splits", "dev": "dev/dev_splits_complete", "test": "output_repeated_splits_test"}


def make_meld(folder: Path, rows: Mapping[str, Sequence[tuple]] = MELD_ROWS) -> None:
    for split, own in rows.items():
        names = ("Dialogue_ID", "Utterance_ID", "Speaker", "Emotion")
        table = [dict(zip(names, row, strict=True)) | {"Utterance": "Hi, you"} for row in own]
        write_rows(folder / f"{split}_sent_emo.csv", table)


def test_meld_is_read_by_its_tables_which_count_their_dialogues_anew(tmp_path):
    folder = tmp_path / "MELD.Raw"
    make_meld(folder)
    for split, rows in MELD_ROWS.items():
        for dialogue, utterance, *_ in rows:
            make(folder / MELD_FOLDERS[split] / f"dia{dialogue}_utt{utterance}.wav")
    (folder / MELD_FOLDERS["dev"] / "dia0_utt1.wav").unlink()
    (folder / MELD_FOLDERS["train"] / "dia125_utt3.wav").write_bytes(b"RIFF, and no more")
    make(folder / MELD_FOLDERS["test"] / "final_videos_testdia1_utt1.wav")
    make(folder / MELD_FOLDERS["test"] / "dia99_utt9.flac")
    make(folder / "dia1_utt1.wav")
    read = read_corpora(tmp_path, ["MELD"])
    found = {(clip.path.parent.name, clip.path.stem, clip.speaker, clip.emotion) for clip in read.clips}
    assert found == {
        ("train_splits", "dia0_utt0", "Chandler", "neutral"), ("train_splits", "dia0_utt1", "The Interviewer", "happy"),
        ("dev_splits_complete", "dia0_utt0", "Ross", "sad"),
        ("output_repeated_splits_test", "dia0_utt0", "Mark", "disgust"),
        ("output_repeated_splits_test", "dia0_utt1", "Monica", "surprised"),
    }  # fmt: skip
    assert faults_of(read) == [
        ("missing", "dia0_utt1"), ("unlabelled", "dia0_utt2.wav"), ("unlabelled", "dia1_utt1.wav"),
        ("unlabelled", "dia99_utt9.flac"), ("unlabelled", "final_videos_testdia1_utt1.wav"),
        ("unreadable", "dia125_utt3.wav"),
    ]  # fmt: skip


def make_video(path: Path) -> None:
    """A second of picture and sound, as MELD's clips are."""
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as out:
        picture = out.add_stream("mpeg4", rate=10)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        sound = out.add_stream("aac", rate=16_000, layout="stereo")
        out.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        for k in range(16):
            frame = av.AudioFrame.from_ndarray(np.full((2, 1024), 0.1, np.float32), "fltp", layout="stereo")
            frame.sample_rate, frame.pts = 16_000, 1024 * k
            out.mux(sound.encode(frame))
        for stream in (picture, sound):
            out.mux(stream.encode(None))


def test_a_video_of_meld_is_read_for_its_sound(tmp_path):
    make_meld(tmp_path / "MELD", {"train": MELD_ROWS["train"][:1]})
    make_video(tmp_path / "MELD" / "train_splits" / "dia0_utt0.mp4")
    (clip,) = read_corpora(tmp_path, ["MELD"]).clips
    assert read_clip(clip, RATE_HZ).size == pytest.approx(RATE_HZ, rel=0.1)


def test_clips_beside_the_only_table_of_meld_are_its_own(tmp_path):
    make_meld(tmp_path / "MELD", {"dev": MELD_ROWS["dev"][:1]})
    make(tmp_path / "MELD" / "dia0_utt0.flac")
    assert told(read_corpora(tmp_path, ["MELD"])) == {"dia0_utt0.flac": ("Ross", "sad", None, None)}
    (tmp_path / "MELD" / "dev_sent_emo.csv").write_text("Speaker,Emotion\n")
    with pytest.raises(ConfigError, match=r"dev_sent_emo\.csv: no column Dialogue_ID, Utterance_ID"):
        read_corpora(tmp_path, ["MELD"])


# ------------------------------------------------------------------------------------- what the owners' tables add


@pytest.fixture
def crema_d(tmp_path: Path) -> Path:
    for name in ("1001_DFA_ANG_XX", "1002_DFA_SAD_XX"):
        make(tmp_path / "CREMA-D" / "AudioWAV" / f"{name}.wav")
    return tmp_path


TABULATED = """"","A","D","F","H","N","S","fileName","numResponses"
"100062",6,2,0,0,1,0,"1001_DFA_ANG_XX",9
"200062",0,0,0,0,0,9,"1001_DFA_ANG_XX",9
"300062",0,0,9,0,0,0,"1001_DFA_ANG_XX",9
"""
FINISHED = """"","localid","ans","queryType","clipName","respEmo"
"1","a","A_50",1,"1001_DFA_ANG_XX","A"
"2","b","N_50",1,"1001_DFA_ANG_XX","N"
"3","c","A_50",1,"1001_DFA_ANG_XX","A"
"4","d","S_50",2,"1001_DFA_ANG_XX","S"
"5","e","F_50",3,"1001_DFA_ANG_XX","F"
"""


def test_votes_of_crema_d_are_those_from_the_voice_alone(crema_d):
    (crema_d / "CREMA-D" / "finishedResponses.csv").write_text(FINISHED)
    angry, sad = read_corpora(crema_d, ["CREMA-D"]).clips
    assert angry.votes == (("angry", 2), ("neutral", 1))
    assert sad.votes == ()
    (crema_d / "CREMA-D" / "processedResults").mkdir()
    (crema_d / "CREMA-D" / "processedResults" / "tabulatedVotes.csv").write_text(TABULATED)
    angry, _ = read_corpora(crema_d, ["CREMA-D"]).clips  # the owners' own count is better
    assert angry.votes == (("angry", 6), ("disgust", 2), ("neutral", 1))
    merged = LabelOptions(merge=(("disgust", "angry"),))
    assert read_corpora(crema_d, ["CREMA-D"], merged).clips[0].votes == (("angry", 8), ("neutral", 1))


@pytest.mark.parametrize("folder", [".", "CREMA-D"])
def test_sex_and_age_of_crema_d_come_from_its_demographics(crema_d, folder):
    rows = [{"ActorID": 1001, "Age": 51, "Sex": "Male"}, {"ActorID": 1002, "Age": 21, "Sex": "Female"}]
    write_rows(crema_d / folder / "VideoDemographics.csv", rows)
    found = told(read_corpora(crema_d, ["CREMA-D"]))
    assert [row[2:] for row in found.values()] == [("male", 51), ("female", 21)]


def test_the_index_gives_folds_and_votes_and_is_not_needed(crema_d):
    assert [clip.fold for clip in read_corpora(crema_d, ["CREMA-D"]).clips] == [None, None]
    rows = [
        {"corpus": "CREMA-D", "path": "CREMA-D/AudioWAV/1001_DFA_ANG_XX.wav", "fold": 3, "votes_sad": 4},
        {"corpus": "CREMA-D", "path": "CREMA-D/AudioWAV/1002_DFA_SAD_XX.wav", "fold": "", "votes_sad": ""},
        {"corpus": "CREMA-D", "path": "CREMA-D/AudioWAV/1003_DFA_SAD_XX.wav", "fold": 1, "votes_sad": ""},
        {"corpus": "TESS", "path": "TESS/none.wav", "fold": "", "votes_sad": ""},
    ]
    write_rows(crema_d / "index.csv", rows)
    read = read_corpora(crema_d, ["CREMA-D"])
    assert [(clip.fold, clip.votes) for clip in read.clips] == [(3, (("sad", 4),)), (None, ())]
    assert faults_of(read) == [("missing", "1003_DFA_SAD_XX.wav")]


def test_an_index_that_cannot_be_read_is_told_with_its_lines(crema_d):
    (crema_d / "index.csv").write_text("corpus,path,fold,votes_sad\nCREMA-D,a.wav,x,1\nCREMA-D,b.wav,1,-2\n")
    with pytest.raises(ConfigError) as raised:
        read_corpora(crema_d, ["CREMA-D"])
    assert "line 2, column 'fold': received 'x', expected a whole number" in raised.value.faults[0]
    assert "line 3, column 'votes_sad': received '-2'" in raised.value.faults[1]
    (crema_d / "index.csv").write_text("file\n")
    with pytest.raises(ConfigError, match=r"index\.csv: no column corpus, path"):
        read_corpora(crema_d, ["CREMA-D"])


# ------------------------------------------------------------------------------------------------------------ labels


@pytest.fixture
def two_corpora(tmp_path: Path) -> Path:
    for emotion in range(1, 9):
        make(tmp_path / "RAVDESS" / f"03-01-{emotion:02d}-01-01-01-01.wav")
    for letter in "WLEAFTN":
        make(tmp_path / "EMO-DB" / f"03a01{letter}a.wav")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "counts", "dropped"),
    [
        (LabelOptions(), {"calm": 1, "surprised": 1, "neutral": 2}, {"boredom": 1}),
        (LabelOptions(boredom="calm"), {"calm": 2, "surprised": 1, "neutral": 2}, {}),
        (LabelOptions(six=True), {"neutral": 2}, {"boredom": 1, "calm": 1, "surprised": 1}),
        (
            LabelOptions(boredom="calm", six=True, merge=(("calm", "neutral"),)),
            {"neutral": 4}, {"surprised": 1},
        ),
    ],
)  # fmt: skip
def test_labels_that_are_dropped_are_counted(two_corpora, options, counts, dropped):
    read = read_corpora(two_corpora, ["RAVDESS", "EMO-DB"], options)
    found = pd.Series([clip.emotion for clip in read.clips]).value_counts().to_dict()
    assert found == dict.fromkeys(("angry", "disgust", "fearful", "happy", "sad"), 2) | counts
    assert read.dropped == dropped
    assert len(read.clips) + sum(read.dropped.values()) == 15


def test_label_options_that_cannot_be_met_are_told_at_once():
    with pytest.raises(ConfigError) as raised:
        LabelOptions(boredom="bored", merge=(("calm", "neutral"), ("calm", "quiet")))
    text = "\n".join(raised.value.faults)
    assert len(raised.value.faults) == 3
    for said in ("boredom: received 'bored'", "merge: received 'quiet'", "'calm' is merged 2 times", LABELS[0]):
        assert said in text


def test_the_label_space_is_sorted_and_the_six_are_in_it():
    assert list(LABELS) == sorted(LABELS)
    assert set(SIX_LABELS) < set(LABELS)


# ---------------------------------------------------------------------------------------------------------- manifest


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """A folder of two calls, the first in stereo."""
    folder = tmp_path / "own"
    folder.mkdir()
    channels = np.stack([speechlike(4.0, 1, RATE_HZ), speechlike(4.0, 2, RATE_HZ)], axis=1)
    soundfile.write(folder / "a.wav", channels, RATE_HZ, subtype="PCM_16")
    make(folder / "b.wav", 2.0)
    return folder


MANIFEST = """path,start_s,end_s,emotion,speaker,channel,corpus,fold,sex,age,agent_note
a.wav,0.5,1.5,Anger,c-17,1,,2,f,44,"shouts, a lot"
a.wav,1.5,2.5,neutral,c-17,1,,2,f,44.0,

b.wav,,,joy,c-18,,hotline,,male,,
c.wav,0,1,sad,c-19,,,,,,
"""


@pytest.mark.parametrize("kind", ["csv", "parquet", "semicolons"])
def test_a_manifest_of_ones_own_calls_is_a_corpus(calls, tmp_path, kind):
    path = calls / f"labelled.{'parquet' if kind == 'parquet' else 'csv'}"
    if kind == "parquet":
        (calls / "x.csv").write_text(MANIFEST)
        pd.read_csv(calls / "x.csv").to_parquet(path)
    else:
        text = MANIFEST if kind == "csv" else MANIFEST.replace('"shouts, a lot"', "").replace(",", ";")
        path.write_text(text, encoding="utf-8-sig")
    for name in (str(path), str(path.relative_to(tmp_path))):
        read = read_corpora(tmp_path, [name])
        third, first, second = read.clips  # by corpus and path
        assert first == Clip("labelled", calls / "a.wav", "c-17", "angry", 2, (), 0.5, 1.5, 1, "female", 44)
        assert (second.start_s, second.end_s, second.emotion) == (1.5, 2.5, "neutral")
        assert third == Clip("hotline", calls / "b.wav", "c-18", "happy", None, sex="male")
        assert faults_of(read) == [("missing", "c.wav 0-1 s")]
    corpus = corpus_of(name)
    assert (corpus.name, corpus.licence, corpus.commercial_use) == (name, "your own", True)
    assert "no limit" in corpus.note


def test_a_part_is_read_from_its_own_seconds_and_channel(calls):
    both = soundfile.read(calls / "a.wav", dtype="float32")[0]
    clip = Clip("own", calls / "a.wav", "s", "sad", None, start_s=0.5, end_s=1.5, channel=1)
    samples = read_clip(clip, RATE_HZ)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, both[4000:12000, 1])
    assert read_clip(clip, 16_000).shape == (16_000,)
    mixed = Clip("own", calls / "a.wav", "s", "sad", None, start_s=3.0, end_s=9.0)
    np.testing.assert_allclose(read_clip(mixed, RATE_HZ), both[24000:].mean(axis=1), atol=1e-6)
    with pytest.raises(AudioError, match="received channel 2, expected one of 0 to 1"):
        read_clip(Clip("own", calls / "a.wav", "s", "sad", None, channel=2), RATE_HZ)
    with pytest.raises(AudioError, match="it ends before the clip begins at 5 s"):
        read_clip(Clip("own", calls / "a.wav", "s", "sad", None, start_s=5.0), RATE_HZ)


def test_a_part_beyond_its_recording_is_a_fault_of_its_own(calls, tmp_path):
    lines = ["path,start_s,end_s,emotion,speaker,channel", "a.wav,0,2,sad,x,0", "a.wav,4,5,sad,x,0", "b.wav,,,sad,x,1"]
    (calls / "m.csv").write_text("\n".join(lines))
    read = read_corpora(tmp_path, ["own/m.csv"])
    assert len(read.clips) == 1
    assert [fault.detail for fault in read.faults] == [
        "the clip begins at 4 s, the recording ends at 4 s", "received channel 1, expected one of 0 to 0",
    ]  # fmt: skip


def test_structural_faults_of_a_manifest_are_told_at_once_with_their_lines(calls, tmp_path):
    path = calls / "wrong.csv"
    path.write_text(
        'path,start_s,end_s,emotion,speaker,fold,sex,age,channel\n'
        'a.wav,x,1,sad,s1,,,,\n'
        'a.wav,2,1,sad,,,,,\n'
        '"a.wav",0,1,"cross\nword",s1,1.5,?,old,-1\n'
        ',-1,inf,sad,s1,,,,\n'
        'a.wav,0,1,sad,s1,1,f,30,0,what, else\n'
    )  # fmt: skip
    with pytest.raises(ConfigError) as raised:
        read_corpora(tmp_path, [str(path)])
    told = [fault.removeprefix(f"{path}: ").replace("\\n", " ").split(", expected")[0] for fault in raised.value.faults]
    assert told == [
        "line 2, column 'start_s': received 'x'",
        "line 3, column 'end_s': received 1", "line 3, column 'speaker': is empty",
        "line 4, column 'emotion': received 'cross word'", "line 4, column 'fold': received '1.5'",
        "line 4, column 'channel': received '-1'", "line 4, column 'sex': received '?'",
        "line 4, column 'age': received 'old'",
        "line 6, column 'path': is empty", "line 6, column 'start_s': received '-1'",
        "line 6, column 'end_s': received 'inf'",
        "line 7: 11 cells",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"file,emotion\n", r"no column path, speaker; expected path, emotion, speaker"),
        (b"path,emotion,speaker\na.wav,sad,x,y\n", r"line 2: 4 cells, expected 3; put a cell"),
        (b"path,emotion,speaker\n\xff.wav,sad,x\n", "not UTF-8"),
        (b'path,emotion,speaker\n"a.wav,sad,x\n', "not readable as CSV"),
        (b"", "no column path, emotion, speaker"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_told(calls, tmp_path, content, sentence):
    (calls / "wrong.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        read_corpora(tmp_path, ["own/wrong.csv"])


def test_a_manifest_that_is_not_there_or_no_parquet_is_told(calls, tmp_path):
    with pytest.raises(ConfigError, match=r"none\.csv: no such file; a manifest's path is absolute or relative"):
        read_corpora(tmp_path, ["none.csv"])
    (calls / "x.parquet").write_bytes(b"PAR0")
    with pytest.raises(ConfigError, match="not readable as Parquet"):
        read_corpora(tmp_path, ["own/x.parquet"])


# ------------------------------------------------------------------------------------------------------------ faults


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A corpus with every fault but a missing file and silence."""
    folder = tmp_path / "CREMA-D"
    first = make(folder / "AudioWAV" / "1001_DFA_ANG_XX.wav")
    make(folder / "AudioWAV" / "1001_IEO_ANG_XX.wav", like=first)  # the same again
    contradictory = make(folder / "1002_DFA_HAP_XX.wav")
    make(folder / "1003_DFA_SAD_XX.flac", like=contradictory)  # another label, other bytes, even another actor
    shutil.copytree(folder / "AudioWAV", folder / "again" / "AudioWAV")
    (folder / "1004_DFA_SAD_XX.wav").write_text("version https://git-lfs.github.com/spec/v1")
    make(folder / "test.wav")
    (folder / "README.md").write_text("no audio")
    make(folder / "1005_DFA_SAD_XX.wav")
    return tmp_path


def test_every_clip_not_taken_stands_in_one_table(faulty):
    read = read_corpora(faulty, ["CREMA-D"])
    assert sorted(told(read)) == ["1001_DFA_ANG_XX.wav", "1005_DFA_SAD_XX.wav"]
    assert read.clips[1].path == faulty / "CREMA-D" / "AudioWAV" / "1001_DFA_ANG_XX.wav"
    assert faults_of(read) == [
        ("contradictory", "1002_DFA_HAP_XX.wav"), ("contradictory", "1003_DFA_SAD_XX.flac"),
        ("duplicate", "1001_DFA_ANG_XX.wav"), ("duplicate", "1001_IEO_ANG_XX.wav"),
        ("duplicate", "1001_IEO_ANG_XX.wav"), ("unlabelled", "test.wav"), ("unreadable", "1004_DFA_SAD_XX.wav"),
    ]  # fmt: skip
    text = render_faults(read.faults, max_rows=2)
    lines = text.splitlines()
    assert lines[0].split() == ["corpus", "fault", "clips"]
    assert [line.split()[1:] for line in lines[1:5]] == [
        ["unreadable", "1"], ["duplicate", "3"], ["contradictory", "2"], ["unlabelled", "1"],
    ]  # fmt: skip
    assert "happy, and sounds the same as 1003_DFA_SAD_XX.flac (sad)" in text
    assert "and 1 more" in text
    assert len({line.index("  ") for line in lines if line.startswith("CREMA-D")}) == 1
    rows = fault_rows(read.faults)
    assert len(rows) == 7
    assert set(rows[0]) == {"corpus", "fault", "path", "detail"}
    assert render_faults(()) == "No faults."


def test_one_sound_of_a_manifest_under_two_labels_is_contradictory(calls, tmp_path):
    lines = ["path,start_s,end_s,emotion,speaker", "a.wav,0,2,sad,x", "a.wav,0,2,happy,x", "a.wav,2,4,happy,x"]
    (calls / "m.csv").write_text("\n".join(lines))
    read = read_corpora(tmp_path, ["own/m.csv"])
    assert [clip.start_s for clip in read.clips] == [2.0]
    assert [fault.fault for fault in read.faults] == ["contradictory"] * 2


@pytest.mark.parametrize(
    ("peak", "detail"), [(0.0, "every sample is 0"), (0.0005, "its peak is -66 dBFS"), (0.0011, None)]
)
def test_a_silent_clip_is_found_where_it_is_read(peak, detail):
    clip = Clip("CREMA-D", Path("1076_MTI_SAD_XX.wav"), "1076", "sad", None)
    fault = check_audio(clip, np.array([0, -peak, peak / 2], np.float32))
    if detail is None:
        assert fault is None
    else:
        expected = f"{detail}, expected -60 dBFS or more"
        assert fault == Fault("CREMA-D", "1076_MTI_SAD_XX.wav", "silent", expected)


def test_silent_clips_are_not_called_contradictory(tmp_path):
    for name in ("1001_DFA_ANG_XX", "1001_DFA_SAD_XX"):
        path = make(tmp_path / "CREMA-D" / f"{name}.wav")
        soundfile.write(path, np.zeros(4000), RATE_HZ)
    make(tmp_path / "CREMA-D" / "1002_DFA_SAD_XX.wav")
    assert [fault.fault for fault in read_corpora(tmp_path, ["CREMA-D"]).faults] == ["silent", "silent"]


def test_a_clip_that_breaks_while_it_is_read_becomes_a_fault(tmp_path):
    clip = Clip("TESS", tmp_path / "none.wav", "OAF", "sad", None)
    with pytest.raises(AudioError) as raised:
        read_clip(clip, RATE_HZ)
    fault = unreadable(clip, raised.value)
    assert (fault.corpus, fault.path, fault.fault) == ("TESS", str(clip.path), "unreadable")
    assert fault.fault in FAULTS


# -------------------------------------------------------------------------------------------------- wrong usage, rest


def test_what_is_wrong_with_a_request_is_told_with_its_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r"received IEMOCAP, MSP; readers exist for CREMA-D, .*manifest of your own"):
        read_corpora(tmp_path, ["IEMOCAP", "CREMA-D", "MSP"])
    with pytest.raises(ConfigError, match=r"holds no clip of SAVEE; expected SAVEE/ with files like DC_a01.*--data"):
        read_corpora(tmp_path, ["SAVEE"])
    make(tmp_path / "SAVEE" / "recording.wav")
    with pytest.raises(ConfigError, match=r"1 files were not taken, such as .*recording\.wav \(expected speaker"):
        read_corpora(tmp_path, ["SAVEE"])
    with pytest.raises(ConfigError, match="no such folder; say where the corpora are with --data"):
        read_corpora(tmp_path / "none", ["SAVEE"])
    (tmp_path / "TESS").mkdir()
    (tmp_path / "TESS" / "OAF_back_sad.wav").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no clip of TESS is left\n[^$]*unreadable"):
        read_corpora(tmp_path, ["TESS"])


def test_every_corpus_says_its_licence_and_only_crema_d_is_free_for_commerce():
    assert list(READERS) == ["CREMA-D", "RAVDESS", "RAVDESS-song", "TESS", "SAVEE", "MELD", "EMO-DB"]
    assert [name for name, corpus in READERS.items() if corpus.commercial_use] == ["CREMA-D"]
    for name, corpus in READERS.items():
        assert corpus.name == name == corpus_of(name).name
        assert corpus.licence
        assert corpus.note.endswith(".")
        assert corpus.layout
    with pytest.raises(ConfigError, match="received IEMOCAP"):
        corpus_of("IEMOCAP")


def test_music_and_noise_are_found_by_name(tmp_path):
    for name in ("b.flac", "a.wav", "README.md", "sub/c.wav", "._a.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_audio(tmp_path)] == ["a.wav", "b.flac"]
    assert find_audio(tmp_path / "none") == []
    assert read_samples(make(tmp_path / "d.wav", 1.0), 16_000).shape == (16_000,)
