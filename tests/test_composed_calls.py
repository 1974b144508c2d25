"""Real telephone calls and composed ones: every recording and every second is accounted for.

The audio is not part of the project; these tests skip where ``../shared`` is absent.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SHARED = Path(__file__).parent.parent.parent / "shared"
BATCHSER = Path(sys.executable).with_name("batchser")
pytestmark = pytest.mark.skipif(
    not (SHARED / "tools/make_calls.py").is_file(), reason="the corpora (../shared) are not here"
)


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """24 calls of about half a minute in eight formats, with their truth."""
    folder = tmp_path_factory.mktemp("composed")
    command = [sys.executable, SHARED / "tools/make_calls.py", folder, "--calls", "24", "--minutes", "0.5"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def run(folder, *arguments):
    finished = subprocess.run(
        [BATCHSER, "run", *arguments, "--out", "results.parquet"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in finished.stderr
    calls = pd.read_parquet(folder / "results.parquet") if (folder / "results.parquet").exists() else None
    segments = pd.read_parquet(folder / "results.segments.parquet") if calls is not None else None
    return finished, calls, segments


def assert_every_second_is_accounted_for(calls, segments):
    for (_, _), windows in segments.groupby(["call_id", "channel"], observed=True):
        assert windows["start_s"].iloc[0] == 0
        np.testing.assert_array_equal(windows["start_s"].to_numpy()[1:], windows["end_s"].to_numpy()[:-1])
        np.testing.assert_array_equal(windows["segment"], np.arange(len(windows)))
    ends = segments.groupby("call_id", observed=True)["end_s"].max()
    scored = calls[calls["channel"].notna()]
    np.testing.assert_allclose(ends[scored["call_id"]], scored["duration_s"], atol=1e-9)
    kinds = scored[["speech_s", "silence_s", "music_s", "tone_s", "noise_s"]].sum(axis=1)
    np.testing.assert_allclose(kinds, scored["duration_s"], atol=1e-6)


def test_composed_calls_in_eight_formats(composed):
    finished, calls, segments = run(composed, composed / "manifest.csv")
    assert finished.returncode == 0, finished.stderr
    truth = pd.read_csv(composed / "calls.csv").set_index("call_id")
    assert set(calls["call_id"]) == set(truth.index)
    assert truth["codec"].nunique() == 6  # PCM both in WAV and FLAC, mu-law both stereo and mono: eight formats
    silent = calls.loc[calls["status"] == "no_speech", "call_id"]  # in half a minute some customers say next to nothing
    assert (truth.loc[silent, "customer_speech_s"] < 3.0).all()
    assert set(calls["status"]) <= {"ok", "no_speech"}
    # Codecs pad to whole frames: GSM 20 ms, MP3 and Opus some 50 ms.
    np.testing.assert_allclose(calls["duration_s"], truth["duration_s"][calls["call_id"]], atol=0.2)
    assert_every_second_is_accounted_for(calls, segments)
    assert segments.loc[segments["role"] == "agent", "emotion"].isna().all()


def test_real_calls(tmp_path):
    finished, calls, segments = run(tmp_path, SHARED / "data/real_calls")
    assert finished.returncode == 0, finished.stderr
    assert calls["status"].tolist() == ["ok"] * 4
    assert_every_second_is_accounted_for(calls, segments)


def test_real_calls_by_role(tmp_path):
    manifest = tmp_path / "night.csv"
    audio = (SHARED / "data/real_calls").resolve()
    rows = [f"{audio}/Auto_Repairs_40_UTC_agent.wav,agent", f"{audio}/Auto_Repairs_40_UTC_caller.wav,customer"]
    manifest.write_text("\n".join(["path,roles", *rows]))
    finished, calls, segments = run(tmp_path, manifest)
    assert finished.returncode == 0, finished.stderr
    assert calls["status"].tolist() == ["not_scored", "ok"]
    assert set(segments["channel"]) == {0}
    assert set(segments["call_id"]) == set(calls["call_id"])  # the agent is gated all the same
