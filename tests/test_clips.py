"""Clips: the moments that match, each in its file, with an index that no name can turn against its reader."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from conftest import Bundle
from pages import HOSTILE, Page, assert_inert, assert_no_formulas
from scored_calls import score_calls, score_headerless

from batchser.cli import cli
from batchser.errors import ConfigError


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Path:
    return score_calls(tmp_path_factory.mktemp("scored"), tiny_bundle.folder)


def clips_of(out: Path, to: Path, *options: str) -> tuple[int, list[dict[str, str]], str]:
    done = CliRunner().invoke(cli, ["clips", str(out), "--to", str(to), *options])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    with (to / "index.csv").open(newline="", encoding="utf-8") as file:
        return done.exit_code, list(csv.DictReader(file)), done.output


def test_clips_are_cut_from_the_originals(out: Path, tmp_path: Path) -> None:
    code, rows, said = clips_of(out, tmp_path / "clips", "--where", "call_id == 'two'", "--context", "0.5")
    assert code == 0
    assert "clips: 2 of 2 moments" in said
    spans = sorted((float(row["start_s"]), float(row["end_s"])) for row in rows)
    assert spans == [(3.0, 12.0), (15.0, 21.0)]  # what the customer says, neighbours merged
    whole, rate_hz = soundfile.read(out.parent / "audio" / "1.wav", dtype="int16", always_2d=True)
    for row in rows:
        clip, clip_rate_hz = soundfile.read(tmp_path / "clips" / row["file"], dtype="int16", always_2d=True)
        first = round((float(row["start_s"]) - 0.5) * rate_hz)
        wanted = whole[first : round((float(row["end_s"]) + 0.5) * rate_hz), 1:]
        assert (clip.shape, clip_rate_hz) == (wanted.shape, rate_hz)
        np.testing.assert_allclose(clip[300:-300], wanted[300:-300], atol=1)
        assert row["queue"] == "two"
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)
    page = Page((tmp_path / "clips" / "index.html").read_text())
    assert [attrs["src"] for tag, attrs in page.elements if tag == "audio"] == [row["file"] for row in rows]


def test_mp3_of_all_channels(out: Path, tmp_path: Path) -> None:
    options = ("--top", "1", "--format", "mp3", "--channels", "all")
    code, rows, _ = clips_of(out, tmp_path / "clips", *options)
    assert (code, len(rows)) == (0, 1)
    assert rows[0]["file"].endswith(".mp3")
    assert soundfile.info(tmp_path / "clips" / rows[0]["file"]).channels == 2


def test_recordings_without_a_header_are_cut_as_stated(tmp_path: Path, tiny_bundle: Bundle) -> None:
    out = score_headerless(tmp_path, tiny_bundle.folder)
    code, (row,), _ = clips_of(out, tmp_path / "untold")
    assert (code, row["file"]) == (1, "")
    assert "say how it is encoded: --encoding" in row["error"]
    code, (row,), _ = clips_of(out, tmp_path / "told", "--encoding", "mulaw", "--rate-hz", "8000")
    assert (code, row["error"]) == (0, "")
    with pytest.raises(ConfigError, match="--rate-hz 8000: expected --encoding with it"):
        clips_of(out, tmp_path / "rate", "--rate-hz", "8000")
    clip, rate_hz = soundfile.read(tmp_path / "told" / row["file"], dtype="int16")
    assert (rate_hz, len(clip)) == (8000, 12 * 8000)


def test_a_dataset_gives_the_same(out: Path, tmp_path: Path, tiny_bundle: Bundle) -> None:
    grown = score_calls(tmp_path / "again", tiny_bundle.folder, out="grown")
    _, one, _ = clips_of(out, tmp_path / "one")
    _, other, _ = clips_of(grown, tmp_path / "other")
    for row in (*one, *other):
        del row["path"]
    assert one == other


def test_recordings_that_are_gone_are_told(tmp_path: Path, tiny_bundle: Bundle) -> None:
    out = score_calls(tmp_path, tiny_bundle.folder)
    (tmp_path / "audio" / "0.wav").unlink()
    samples, rate_hz = soundfile.read(tmp_path / "audio" / "1.wav")
    soundfile.write(tmp_path / "audio" / "1.wav", samples[: 13 * rate_hz], rate_hz)
    code, rows, said = clips_of(out, tmp_path / "clips")
    assert code == 1
    told = {(row["call_id"], row["start_s"]): row["error"] for row in rows}
    assert "there is no such file" in told["one", "3.000"]
    assert told["two", "3.000"] == ""
    assert "shorter than it was when it was scored" in told["two", "15.000"]
    assert "one (2 moments): there is no such file" in said
    assert "shorter than it was" in (tmp_path / "clips" / "index.html").read_text()


def test_root_keeps_clips_inside(out: Path, tmp_path: Path) -> None:
    code, rows, _ = clips_of(out, tmp_path / "clips", "--root", str(tmp_path))
    assert code == 1
    assert {row["file"] for row in rows} == {""}
    assert all("outside of --root" in row["error"] for row in rows)


def test_hostile_names_are_inert(tmp_path: Path, tiny_bundle: Bundle) -> None:
    out = score_calls(tmp_path, tiny_bundle.folder, names=HOSTILE)
    code, rows, _ = clips_of(out, tmp_path / "clips")
    assert (code, len(rows)) == (0, 2 * len(HOSTILE))
    assert all((tmp_path / "clips" / row["file"]).parent == tmp_path / "clips" for row in rows)
    assert_no_formulas((tmp_path / "clips" / "index.csv").read_text(encoding="utf-8"))
    page = Page((tmp_path / "clips" / "index.html").read_text(encoding="utf-8"))
    assert_inert(page)
    assert all(name.strip() in page.text for name in HOSTILE)


def test_nothing_found_is_an_empty_index(out: Path, tmp_path: Path) -> None:
    code, rows, said = clips_of(out, tmp_path / "clips", "--where", "negativity > 2")
    assert (code, rows) == (0, [])
    assert "clips: 0 of 0 moments" in said
    assert "no scored window meets the conditions" in said
    assert "No moment matches." in (tmp_path / "clips" / "index.html").read_text()


def test_clips_of_another_selection_are_not_mixed(out: Path, tmp_path: Path) -> None:
    clips_of(out, tmp_path / "clips")
    with pytest.raises(ConfigError, match=r"holds the index\.csv of other clips"):
        clips_of(out, tmp_path / "clips")
    with pytest.raises(ConfigError, match="--emotion furious"):
        clips_of(out, tmp_path / "others", "--emotion", "furious")
    assert not (tmp_path / "others").exists()
