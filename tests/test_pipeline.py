"""The story of a recording: parity whatever the sizes, roles, faults as rows, and a loop that nothing ends."""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from conftest import LABELS, RATE_HZ, WINDOW, call, noise, recording, ring, silence, speechlike, write

import batchser
from batchser import pipeline
from batchser.errors import AudioError, BundleError, ConfigError
from batchser.pipeline import BatchSizes, channel_roles, parse_roles, score_recordings
from batchser.records import KINDS, SPEECH, Outcome, Recording, WindowScores
from batchser.settings import LimitSettings, RunSettings, TrustSettings
from batchser.tables import segments_schema

TOLERANCE = 1e-5  # of a score, whatever the sizes
WHOLE = BatchSizes(block_s=3600.0, gate_windows=100_000, score_windows=100_000)
EVERY = RunSettings(roles=("all",))
TAIL_S = 0.75


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few recordings: stereo and mono, 8 and 16 kHz, all with a tail."""
    folder = tmp_path_factory.mktemp("recordings")
    agent = np.concatenate([call(1), speechlike(TAIL_S, 1)])
    customer = np.concatenate([call(2), speechlike(TAIL_S, 2)])
    write(folder / "two.wav", agent, np.roll(customer, RATE_HZ))
    write(folder / "agent.wav", agent)
    write(folder / "customer.wav", np.roll(customer, RATE_HZ))
    write(folder / "mulaw.wav", customer, subtype="ULAW")
    write(folder / "wide.flac", speechlike(8.3, 3, 16_000), noise(8.3, 4, 16_000), rate_hz=16_000)
    write(folder / "ring.wav", ring(4))
    write(folder / "speech.wav", speechlike(7, 5))
    return folder


@pytest.fixture
def score(tiny_model):
    """Score recordings with the tiny model; returns the list of Outcomes."""

    def run(
        recordings: Sequence[Recording], settings: RunSettings = EVERY, sizes: BatchSizes | None = None
    ) -> list[Outcome]:
        return list(score_recordings(recordings, tiny_model, settings, sizes))

    return run


def assert_same_windows(found: WindowScores, expected: WindowScores) -> None:
    """All figures of a channel but its number, role and overtalk."""
    np.testing.assert_array_equal(found.start_s, expected.start_s)
    np.testing.assert_array_equal(found.end_s, expected.end_s)
    np.testing.assert_array_equal(found.kind, expected.kind)
    np.testing.assert_allclose(found.voiced_s, expected.voiced_s, atol=1e-9)
    np.testing.assert_allclose(found.level_dbfs, expected.level_dbfs, atol=1e-3)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=TOLERANCE)


def assert_same(found: Outcome, expected: Outcome) -> None:
    """Everything that the tables take from an outcome, but when it was made."""
    assert found.recording.call_id == expected.recording.call_id
    assert (found.status, found.truncated, found.duration_s) == (
        expected.status,
        expected.truncated,
        expected.duration_s,
    )
    assert found.source_sha256 == expected.source_sha256
    assert [s.emotion for s in found.summaries] == [s.emotion for s in expected.summaries]
    assert [s.error for s in found.summaries] == [s.error for s in expected.summaries]
    assert len(found.windows) == len(expected.windows)
    for ours, theirs in zip(found.windows, expected.windows, strict=True):
        assert (ours.channel, ours.role) == (theirs.channel, theirs.role)
        np.testing.assert_allclose(ours.overtalk_s, theirs.overtalk_s, atol=1e-9)
        assert_same_windows(ours, theirs)


# ------------------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("name", ["two.wav", "mulaw.wav", "wide.flac"])
@pytest.mark.parametrize(
    "sizes",
    [BatchSizes(0.01, 1, 1), BatchSizes(0.7, 3, 2), BatchSizes(2.9, 64, 5), BatchSizes(30.0, 5, 7), BatchSizes()],
    ids=lambda s: f"{s.block_s}s-{s.gate_windows}-{s.score_windows}",
)
def test_streamed_equals_the_whole_file(score, folder, name, sizes):
    (whole,) = score([recording(folder / name)], sizes=WHOLE)
    (streamed,) = score([recording(folder / name)], sizes=sizes)
    assert whole.status == "ok"
    assert_same(streamed, whole)


def test_a_channel_of_a_stereo_file_equals_the_same_mono_file(score, folder):
    (both,) = score([recording(folder / "two.wav")])
    for channel, name in enumerate(("agent.wav", "customer.wav")):
        (mono,) = score([recording(folder / name)])
        assert mono.windows[0].scored.any()
        assert both.windows[channel].channel == channel
        assert_same_windows(both.windows[channel], mono.windows[0])


@pytest.mark.parametrize("score_windows", [1, 4, 256])
def test_neighbours_do_not_change_a_recording(score, folder, tmp_path, score_windows):
    (tmp_path / "broken.wav").write_bytes(b"RIFF but no more")
    names = ["two.wav", "ring.wav", "missing.wav", "speech.wav", "wide.flac", "agent.wav"]
    recordings = [recording(folder / name, index) for index, name in enumerate(names)]
    recordings.insert(1, recording(tmp_path / "broken.wav", 99))
    together = score(recordings, sizes=BatchSizes(score_windows=score_windows))
    assert [outcome.recording for outcome in together] == recordings
    for one, outcome in zip(recordings, together, strict=True):
        assert_same(outcome, score([one], sizes=WHOLE)[0])


def test_outcomes_come_as_soon_as_their_windows_are_scored(tiny_model, folder):
    asked = []

    def recordings():
        for index in range(3):
            asked.append(index)
            yield recording(folder / "speech.wav", index)

    outcomes = score_recordings(recordings(), tiny_model, EVERY, BatchSizes(score_windows=1))
    next(outcomes)
    assert asked == [0]
    assert len(list(outcomes)) == 2


@pytest.mark.parametrize("gain", [10 ** (12 / 20), 10 ** (-12 / 20)], ids=["12 dB louder", "12 dB quieter"])
def test_level_does_not_decide(score, tmp_path, gain):
    line = np.concatenate([part for seed in range(20) for part in (speechlike(9, 50 + seed), ring(3), noise(3, seed))])
    write(tmp_path / "as-is.wav", line, subtype="FLOAT")
    write(tmp_path / "copy.wav", line * np.float32(gain), subtype="FLOAT")
    as_is, copy = (o.windows[0] for o in score([recording(tmp_path / n) for n in ("as-is.wav", "copy.wav")]))
    assert np.mean(as_is.kind == copy.kind) >= 0.98
    both = as_is.scored & copy.scored
    assert both.sum() >= 58
    answers, again = as_is.probabilities[both].argmax(axis=1), copy.probabilities[both].argmax(axis=1)
    assert len(set(answers.tolist())) >= 3
    assert np.mean(answers == again) >= 0.98
    np.testing.assert_allclose(copy.level_dbfs - as_is.level_dbfs, 20 * np.log10(gain), atol=1e-2)


# ----------------------------------------------------------------------------------------------- windows and kinds


def test_each_stretch_of_a_call_gets_its_kind_and_only_speech_an_emotion(score, tmp_path):
    (outcome,) = score([recording(write(tmp_path / "call.wav", call(7)))])
    (windows,) = outcome.windows
    assert [KINDS[kind] for kind in windows.kind] == ["speech", "tone", "silence", "speech", "noise"]
    assert windows.scored.tolist() == [True, False, False, True, False]
    assert windows.level_dbfs[2] == -100
    (row,) = outcome.summaries
    assert (row.status, row.num_segments, row.num_scored) == ("ok", 5, 2)
    assert (row.speech_s, row.tone_s, row.silence_s, row.noise_s, row.music_s) == (6, 3, 3, 3, 0)
    assert row.emotion in LABELS


@pytest.mark.parametrize("num_samples", [1, 511, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW - 1, 2 * WINDOW + 1])
def test_the_windows_of_every_channel_tile_the_recording(score, tmp_path, num_samples):
    line = speechlike(7, 1)[:num_samples]
    (outcome,) = score([recording(write(tmp_path / "a.wav", line, noise(7)[:num_samples]))])
    assert outcome.duration_s == num_samples / RATE_HZ
    assert len(outcome.windows) == 2
    for windows in outcome.windows:
        assert windows.start_s[0] == 0
        assert windows.end_s[-1] == outcome.duration_s
        np.testing.assert_array_equal(windows.start_s[1:], windows.end_s[:-1])
        np.testing.assert_array_equal(windows.start_s, 3.0 * np.arange(-(-num_samples // WINDOW)))
        assert (windows.voiced_s <= windows.end_s - windows.start_s).all()
        assert len({len(windows.kind), len(windows.voiced_s), len(windows.level_dbfs), len(windows.probabilities)}) == 1
    for row in outcome.summaries:
        by_kind = (row.speech_s, row.silence_s, row.music_s, row.tone_s, row.noise_s)
        assert sum(by_kind) == pytest.approx(outcome.duration_s)


def test_both_parties_at_once_are_overtalk(score, tmp_path):
    a, b, quiet = speechlike(3, 1), speechlike(3, 2), silence(3)
    path = write(tmp_path / "call.wav", np.concatenate([a, a, quiet]), np.concatenate([b, quiet, b]))
    (outcome,) = score([recording(path, roles=("agent", "customer"))])
    for windows, row in zip(outcome.windows, outcome.summaries, strict=True):
        np.testing.assert_allclose(windows.overtalk_s, [3, 0, 0])
        assert row.overtalk_s == pytest.approx(3)
        assert row.talk_share == pytest.approx(0.5)


@pytest.mark.parametrize(("num_samples", "status", "num_scored"), [(3999, "too_short", 0), (4000, "ok", 1)])
def test_under_half_a_second_nothing_is_said_of_a_call(score, tmp_path, num_samples, status, num_scored):
    (outcome,) = score([recording(write(tmp_path / "a.wav", speechlike(1, 3)[:num_samples]))])
    assert outcome.status == status
    assert outcome.summaries[0].num_scored == outcome.windows[0].scored.sum() == num_scored


def test_a_recording_without_speech_has_its_windows_and_no_emotion(score, folder):
    (outcome,) = score([recording(folder / "ring.wav")])
    assert outcome.status == "no_speech"
    assert outcome.summaries[0].emotion is None
    assert outcome.summaries[0].tone_s == 4
    assert not outcome.windows[0].scored.any()


def test_an_outcome_names_its_source_by_content_and_its_time_in_utc(score, folder):
    (outcome,) = score([recording(folder / "ring.wav")])
    assert outcome.source_sha256 == hashlib.sha256((folder / "ring.wav").read_bytes()).hexdigest()
    assert outcome.scored_at.tzinfo is UTC


def test_a_remote_recording_is_fetched_once(score, folder, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe("/night/ring.wav", (folder / "ring.wav").read_bytes())
    opened, plain = [], type(memory).open

    def counted(self, path, *rest):
        opened.append(path)
        return plain(self, path, *rest)

    monkeypatch.setattr(type(memory), "open", counted)
    settings = dataclasses.replace(EVERY, limits=LimitSettings(trust=TrustSettings(protocols=("memory",))))
    (remote,) = score([Recording(0, "a", "memory://night/ring.wav")], settings)
    (local,) = score([recording(folder / "ring.wav")])
    assert opened == ["/night/ring.wav"]
    assert (remote.status, remote.source_sha256) == (local.status, local.source_sha256)


# ------------------------------------------------------------------------------------------------------- roles


@pytest.mark.parametrize(
    ("wanted", "scored"),
    [(("customer", "mixed"), [1]), (("agent",), [0]), (("agent", "customer"), [0, 1]), (("all",), [0, 1])],
)
def test_only_channels_of_the_wanted_roles_are_scored_and_all_are_gated(score, folder, wanted, scored):
    (outcome,) = score([recording(folder / "two.wav", roles=("agent", "customer"))], RunSettings(roles=wanted))
    assert [w.role for w in outcome.windows] == ["agent", "customer"]
    assert all((w.kind == SPEECH).any() for w in outcome.windows)
    assert [w.channel for w in outcome.windows if w.scored.any()] == scored
    assert [(row.channel, row.status) for row in outcome.summaries] == [(channel, "ok") for channel in scored]


def test_the_agent_is_never_scored_unless_asked(score, folder):
    (outcome,) = score([recording(folder / "agent.wav", roles=("agent",))], RunSettings())
    assert outcome.status == "not_scored"
    assert np.isnan(outcome.windows[0].probabilities).all()
    assert outcome.summaries[0].channel is None


def test_a_mono_recording_without_a_role_is_mixed_and_scored(score, folder):
    (outcome,) = score([recording(folder / "speech.wav")], RunSettings())
    assert (outcome.windows[0].role, outcome.status) == ("mixed", "ok")


def test_a_stereo_recording_without_roles_is_not_scored(score, folder):
    (outcome,) = score([recording(folder / "two.wav")], RunSettings())
    assert outcome.status == "not_scored"
    assert [w.role for w in outcome.windows] == ["unknown", "unknown"]
    assert not any(w.scored.any() for w in outcome.windows)
    assert (outcome.summaries[0].channel, outcome.summaries[0].duration_s) == (None, outcome.duration_s)
    assert outcome.summaries[0].error is None


def test_the_map_of_channel_roles_stands_in_where_the_manifest_states_none(score, folder):
    settings = RunSettings(channel_roles=("customer", "agent"))
    stated = recording(folder / "two.wav", roles=("agent", "customer"))
    mapped, own = score([recording(folder / "two.wav"), stated], settings)
    assert [row.channel for row in mapped.summaries] == [0]
    assert [row.channel for row in own.summaries] == [1]
    assert channel_roles(recording("a.wav"), 3, settings) == ("unknown",) * 3
    assert channel_roles(recording("a.wav"), 1, settings) == ("mixed",)


def test_two_channels_with_one_signal_are_one_mixed_channel(score, folder, tmp_path):
    line = np.concatenate([call(1), speechlike(TAIL_S, 1)])
    path = write(tmp_path / "fake.wav", line, line)
    for roles in (None, ("agent", "customer")):
        (outcome,) = score([recording(path, roles=roles)], RunSettings())
        assert [(w.channel, w.role) for w in outcome.windows] == [(0, "mixed")]
        assert [(row.channel, row.role, row.status) for row in outcome.summaries] == [(0, "mixed", "ok")]
        (mono,) = score([recording(folder / "agent.wav")])
        assert_same_windows(outcome.windows[0], mono.windows[0])


def test_roles_that_do_not_fit_the_channels_make_a_recording_unreadable(score, folder):
    (outcome,) = score([recording(folder / "speech.wav", roles=("agent", "customer"))])
    assert outcome.status == "unreadable"
    assert outcome.summaries[0].error == (
        "the manifest states 2 roles (agent,customer) but the recording has 1 channels; state one role per channel, "
        "or none"
    )


def test_roles_are_parsed_and_wrong_ones_told():
    assert parse_roles(" Customer, mixed,", what="--roles") == ("customer", "mixed")
    assert parse_roles("all", what="--roles", allow_all=True) == ("all",)
    for text in ("caller", "all", "", " , ", "customer;agent"):
        with pytest.raises(ConfigError) as raised:
            parse_roles(text, what="--roles")
        assert str(raised.value) == (
            f"--roles: received {text!r}, expected a comma-separated list of agent, customer, mixed, unknown"
        )


# ------------------------------------------------------------------------------------------------------ faults


def _random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(3).bytes(20_000))


def _with_nan(path: Path) -> None:
    line = speechlike(4, 1)
    line[[7, 20_000]] = np.nan
    write(path, line, subtype="FLOAT")


FAULTS = {
    "random bytes": (_random_bytes, "no known audio header, expected WAV"),
    "an empty file": (lambda path: path.write_bytes(b""), "the file is empty (0 bytes), expected a recording"),
    "a text file": (lambda path: path.write_text("not found\n" * 99), "starts with text, expected audio"),
    "64 channels": (lambda path: write(path, *[noise(0.6)] * 64), "64 channels, expected 1 to 8"),
    "a rate of 1 Hz": (lambda path: write(path, noise(1), rate_hz=1), "a rate of 1 Hz, expected 4000 to 192000 Hz"),
    "NaN samples": (_with_nan, "2 of the file's 32000 samples are not finite"),
    "a header alone": (lambda path: write(path, noise(0)), "a header but no audio (0 samples)"),
    "no file": (lambda path: None, "there is no such file"),
    "a folder": (lambda path: path.mkdir(), "not a regular file"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_bad_recording_costs_one_row_that_says_why(score, folder, tmp_path, caplog, what):
    make, sentence = FAULTS[what]
    path = tmp_path / "bad.wav"
    make(path)
    recordings = [recording(folder / "ring.wav"), recording(path, 1), recording(folder / "speech.wav", 2)]
    before, bad, after = score(recordings)
    assert (before.status, bad.status, after.status) == ("no_speech", "unreadable", "ok")
    (row,) = bad.summaries
    assert sentence in row.error
    assert row.channel is None
    assert bad.windows == ()
    assert not caplog.records


def test_a_file_of_one_sample_is_too_short(score, tmp_path):
    (outcome,) = score([recording(write(tmp_path / "one.wav", noise(1)[:1]))])
    assert outcome.status == "too_short"
    assert outcome.duration_s == 1 / RATE_HZ


def test_half_a_file_is_scored_as_far_as_it_goes(score, tmp_path):
    whole = write(tmp_path / "whole.wav", speechlike(12, 9))
    half = tmp_path / "half.wav"
    half.write_bytes(whole.read_bytes()[: 44 + 2 * (2 * WINDOW)])
    first, second = score([recording(whole), recording(half)])
    assert (first.truncated, second.truncated) == (False, True)
    assert (second.status, second.duration_s) == ("ok", 6.0)
    np.testing.assert_allclose(second.windows[0].probabilities, first.windows[0].probabilities[:2], atol=TOLERANCE)


def test_a_recording_past_a_limit_is_unreadable_with_the_number(score, folder):
    settings = RunSettings(limits=LimitSettings(max_duration_s=5.0))
    long, short = score([recording(folder / "speech.wav"), recording(folder / "ring.wav")], settings)
    assert "lasts 7 s or more, expected at most 5 s" in long.summaries[0].error
    assert short.status == "no_speech"


@pytest.mark.parametrize("batch", [1, 2])
def test_an_unexpected_error_costs_one_row_and_is_logged(score, folder, monkeypatch, caplog, batch):
    """Also when windows of the recording were queued before: its neighbours' scores stay theirs."""
    names = ["speech.wav", "agent.wav", "customer.wav"]
    recordings = [recording(folder / name, index) for index, name in enumerate(names)]
    sizes = BatchSizes(gate_windows=2, score_windows=7)
    expected = score(recordings, sizes=sizes)
    extract, count = pipeline.extract, 0

    def fails_in_agent(samples, settings):
        nonlocal count
        count += 1
        if count == 2 + batch:  # speech.wav takes two batches
            raise ZeroDivisionError("by zero")
        return extract(samples, settings)

    monkeypatch.setattr(pipeline, "extract", fails_in_agent)
    with caplog.at_level(logging.ERROR):
        found = score(recordings, sizes=sizes)
    assert [outcome.status for outcome in found] == ["ok", "failed", "ok"]
    assert found[1].summaries[0].error == ("unexpected ZeroDivisionError: by zero; see the log, and please report it")
    assert found[1].source_sha256 == expected[1].source_sha256
    assert_same(found[0], expected[0])
    assert_same(found[2], expected[2])
    (record,) = caplog.records
    assert record.getMessage().startswith("agent: ")
    assert record.exc_info[0] is ZeroDivisionError


# ------------------------------------------------------------------------------------------------------ score()


def test_score_returns_the_segments_of_one_recording(tiny_bundle, folder, monkeypatch):
    monkeypatch.chdir(folder)
    table = batchser.score("two.wav", model=str(tiny_bundle.folder), roles="all")
    assert isinstance(table, pd.DataFrame)
    assert list(table.columns) == segments_schema(LABELS).names
    assert set(table["call_id"]) == {"two"}
    assert table["channel"].tolist() == [0] * 6 + [1] * 6
    assert table["segment"].tolist() == [*range(6), *range(6)]
    assert table["end_s"].max() == 15 + TAIL_S
    speech = table[table["kind"] == "speech"]
    assert len(speech) > 0
    assert speech["emotion"].isin(LABELS).all()
    np.testing.assert_allclose(speech[[f"p_{label}" for label in LABELS]].sum(axis=1), 1, atol=1e-5)
    assert table.loc[table["kind"] != "speech", "emotion"].isna().all()


def test_score_takes_a_path_and_leaves_the_agent_alone(tiny_bundle, folder):
    table = batchser.score(folder / "two.wav", model=str(tiny_bundle.folder))
    assert table["emotion"].isna().all()
    assert len(batchser.score(folder / "speech.wav", model=str(tiny_bundle.folder))["emotion"].dropna()) > 0


def test_score_raises_in_a_sentence(tiny_bundle, folder):
    model = str(tiny_bundle.folder)
    with pytest.raises(AudioError, match=r"nothing\.wav: there is no such file"):
        batchser.score(folder / "nothing.wav", model=model)
    with pytest.raises(ConfigError, match="roles: received 'boss', expected"):
        batchser.score(folder / "speech.wav", model=model, roles="boss")
    with pytest.raises(BundleError, match="model 'nonesuch': no such bundle"):
        batchser.score(folder / "speech.wav", model="nonesuch")


def test_a_mono_recording_takes_the_one_channel_role_that_was_stated():
    settings = RunSettings(channel_roles=("agent",))
    assert channel_roles(recording("agent-leg.wav"), 1, settings) == ("agent",)
    assert channel_roles(recording("call.wav"), 1, RunSettings(channel_roles=("agent", "customer"))) == ("mixed",)
