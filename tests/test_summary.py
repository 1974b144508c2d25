"""A call's figures: one example by hand, laws that hold for any call, and escalation on composed timelines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchser.records import KINDS, MUSIC, SILENCE, SPEECH, CallSummary, WindowScores
from batchser.settings import SummarySettings
from batchser.summary import failed, summarise

LABELS = ("angry", "happy", "neutral", "sad")
NEGATIVE = ("angry", "sad")
CONSTANTS = SummarySettings()


def channel_of(
    probabilities: list[list[float]] | np.ndarray,
    voiced_s: list[float] | np.ndarray | None = None,
    *,
    channel: int = 0,
    role: str = "customer",
    kinds: list[int] | None = None,
    duration_s: float | None = None,
    levels: list[float] | np.ndarray | None = None,
    overtalk_s: list[float] | None = None,
    threshold: float = 0.4,
) -> WindowScores:
    """Build a channel of 3 s windows; an empty list of probabilities is a window that was not scored."""
    num_windows = len(probabilities)
    rows = [list(row) if len(row) else [np.nan] * len(LABELS) for row in probabilities]
    edges = np.append(3.0 * np.arange(num_windows), 3.0 * num_windows if duration_s is None else duration_s)
    scored = [bool(len(row)) for row in probabilities]
    return WindowScores(
        channel=channel,
        role=role,
        start_s=edges[:-1],
        end_s=edges[1:],
        kind=np.array(kinds if kinds is not None else [SPEECH if s else SILENCE for s in scored], np.int8),
        voiced_s=np.asarray(voiced_s if voiced_s is not None else [2.0 * s for s in scored], np.float64),
        overtalk_s=np.asarray(overtalk_s if overtalk_s is not None else np.zeros(num_windows), np.float64),
        level_dbfs=np.asarray(levels if levels is not None else np.full(num_windows, -20.0), np.float32),
        probabilities=np.asarray(rows, np.float32).reshape(num_windows, len(LABELS)),
        threshold=threshold,
    )


def timeline(negativity: list[float] | np.ndarray) -> list[list[float]]:
    """Give each window this negativity, all of it anger, the rest neutral."""
    return [[value, 0.0, 1 - value, 0.0] for value in negativity]


def sum_up(*channels: WindowScores, scored: tuple[int, ...] = (0,), **changes: float) -> tuple[CallSummary, ...]:
    constants = dataclasses.replace(CONSTANTS, **changes)
    duration_s = float(channels[0].end_s[-1])
    return summarise(channels, scored, LABELS, NEGATIVE, constants, duration_s=duration_s, min_duration_s=0.5)


def test_golden_by_hand():
    customer = channel_of(
        [[0.1, 0.6, 0.2, 0.1], [], [0.35, 0.15, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1], []],
        voiced_s=[1.0, 0.2, 2.0, 1.0, 0.0],
        channel=1,
        kinds=[SPEECH, SILENCE, SPEECH, SPEECH, MUSIC],
        duration_s=13.0,
        levels=[-20.0, -90.0, -30.0, -20.0, -10.0],
        overtalk_s=[0.5, 0.0, 0.25, 0.0, 0.0],
    )
    agent = channel_of([[]] * 5, voiced_s=[2.8, 3.0, 0.0, 0.0, 0.0], role="agent", duration_s=13.0)
    (row,) = sum_up(agent, customer, scored=(1,), trend_min_windows=3)
    expected = CallSummary(
        channel=1,
        role="customer",
        status="ok",
        duration_s=13.0,
        speech_s=9.0,
        silence_s=3.0,
        music_s=1.0,
        tone_s=0.0,
        noise_s=0.0,
        voiced_s=4.2,
        talk_share=0.42,
        overtalk_s=0.75,
        num_segments=5,
        num_scored=3,
        emotion="angry",
        confidence=0.375,  # (0.1 + 2 · 0.35 + 0.7) / 4
        means=(0.375, 0.25, 0.2, 0.175),
        shares=(0.25, 0.25, 0.0, 0.0),  # the middle window abstains: 0.35 < 0.4
        negativity=0.55,
        negativity_q=(0.2, None, 0.6, 0.8),  # middles 1.5, 7.5 and 10.5 s; quarters of 3.25 s
        trend="worsening",
        peak_emotion="angry",
        peak_start_s=9.0,
        peak_score=0.8,
        level_dbfs=10 * np.log10((0.01 + 0.001 + 0.01) / 3),
        abstained_share=0.5,
        escalated=False,
    )
    # By numpy's own fit: polyfit weighs residuals, so it takes the roots of the weights.
    slope = np.polyfit(np.array([1.5, 7.5, 10.5]) / 13, [0.2, 0.6, 0.8], 1, w=np.sqrt([1.0, 2.0, 1.0]))[0]
    expected = dataclasses.replace(expected, trend_slope=slope)
    for column in dataclasses.fields(CallSummary):
        received, wanted = getattr(row, column.name), getattr(expected, column.name)
        if isinstance(wanted, float | tuple):
            assert received == pytest.approx(wanted, abs=1e-6), column.name
        else:
            assert received == wanted, column.name


def test_plain_python_numbers():
    (row,) = sum_up(channel_of(timeline([0.1] * 5)))
    for column in dataclasses.fields(CallSummary):
        value = getattr(row, column.name)
        for one in value if isinstance(value, tuple) else (value,):
            assert one is None or type(one) in (float, int, str, bool), column.name


# ------------------------------------------------------------------------------------------------- statuses


def test_not_scored_is_one_row_without_a_channel():
    silent = channel_of([[], []], role="agent")
    (row,) = sum_up(silent, scored=())
    assert row == CallSummary(status="not_scored", duration_s=6.0)


def test_no_speech_keeps_the_kinds():
    (row,) = sum_up(channel_of([[], []]))
    assert (row.status, row.emotion, row.silence_s, row.num_segments) == ("no_speech", None, 6.0, 2)
    assert row.talk_share is None  # nobody is voiced
    assert row.negativity is row.trend is row.escalated is row.abstained_share is None


@pytest.mark.parametrize(("duration_s", "status"), [(0.499, "too_short"), (0.5, "no_speech"), (0.501, "no_speech")])
def test_too_short(duration_s: float, status: str):
    (row,) = sum_up(channel_of([[]], duration_s=duration_s))
    assert (row.status, row.duration_s) == (status, duration_s)


def test_no_windows_at_all():
    empty = channel_of([])
    (row,) = summarise([empty], {0}, LABELS, NEGATIVE, CONSTANTS, duration_s=0.0, min_duration_s=0.5)
    assert (row.status, row.num_segments, row.level_dbfs, row.speech_s) == ("too_short", 0, None, 0.0)


def test_rows_stand_in_the_order_of_channels():
    three = [channel_of(timeline([0.1 * n]), channel=n) for n in (2, 0, 1)]
    rows = sum_up(*three, scored=(2, 0))
    assert [row.channel for row in rows] == [0, 2]
    assert sum(row.talk_share for row in rows) == pytest.approx(2 / 3)


def test_a_single_channel_has_no_overtalk():
    (row,) = sum_up(channel_of(timeline([0.1])))
    assert row.overtalk_s is None


def test_failed():
    assert failed("unreadable", "no such file") == CallSummary(status="unreadable", error="no such file")
    assert failed("crashed", "killed", 12.5).duration_s == 12.5


def test_callers_faults_raise():
    windows = [channel_of(timeline([0.1]))]
    with pytest.raises(ValueError, match=r"channels without windows: \[3\]"):
        sum_up(*windows, scored=(3,))
    with pytest.raises(ValueError, match="cross"):
        summarise(windows, {0}, LABELS, ("cross",), CONSTANTS, duration_s=3.0, min_duration_s=0.5)


# ------------------------------------------------------------------------------------------------- laws


@st.composite
def channels(draw: st.DrawFn) -> WindowScores:
    num_windows = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = rng.integers(0, len(KINDS), num_windows)
    rows = [rng.dirichlet(np.full(len(LABELS), 0.5)) if kind == SPEECH else [] for kind in kinds]
    voiced_s = np.where(kinds == SPEECH, rng.uniform(0, 3, num_windows), rng.uniform(0, 0.5, num_windows))
    tail_s = draw(st.floats(0.5, 3.0))
    return channel_of(
        rows,
        voiced_s,
        kinds=kinds.tolist(),
        duration_s=3.0 * (num_windows - 1) + tail_s,
        levels=rng.uniform(-60, 0, num_windows),
        threshold=draw(st.sampled_from([0.0, 0.4, 0.6, 1.1])),
    )


@settings(deadline=None, max_examples=150)
@given(channels())
def test_laws(scores: WindowScores):
    (row,) = sum_up(scores)
    kinds_s = [row.speech_s, row.silence_s, row.music_s, row.tone_s, row.noise_s]
    assert sum(kinds_s) == pytest.approx(row.duration_s)
    assert -100 <= row.level_dbfs <= 1e-6
    if row.num_scored == 0:
        assert row.means is None
        return
    assert sum(row.means) == pytest.approx(1, abs=1e-5)
    assert sum(row.shares) + row.abstained_share == pytest.approx(1, abs=1e-9)
    assert row.confidence == max(row.means)
    assert row.negativity == pytest.approx(row.means[0] + row.means[3])
    assert 0 <= min(q for q in row.negativity_q if q is not None) <= row.peak_score + 1e-9
    assert row.trend in ("improving", "steady", "worsening")
    assert row.trend_slope is None or -1 <= row.trend_slope <= 1
    assert row.escalated == (row.escalation_s is not None)


@settings(deadline=None, max_examples=50)
@given(channels(), st.floats(-20, 20))
def test_level_does_not_matter(scores: WindowScores, gain_db: float):
    louder = dataclasses.replace(scores, level_dbfs=(scores.level_dbfs + gain_db).astype(np.float32))
    (quiet,), (loud,) = sum_up(scores), sum_up(louder)
    assert loud.level_dbfs == pytest.approx(max(-100.0, quiet.level_dbfs + gain_db), abs=1e-3)
    assert dataclasses.replace(loud, level_dbfs=quiet.level_dbfs) == quiet


@settings(deadline=None, max_examples=50)
@given(channels())
def test_time_reversed(scores: WindowScores):
    """Played backwards, a call keeps its means and its trend turns round."""
    backwards = dataclasses.replace(
        scores,
        start_s=(scores.end_s[-1] - scores.end_s)[::-1],
        end_s=(scores.end_s[-1] - scores.start_s)[::-1],
        **{name: getattr(scores, name)[::-1] for name in ("kind", "voiced_s", "level_dbfs", "probabilities")},
    )
    (forth,), (back,) = sum_up(scores), sum_up(backwards)
    assert forth.means == pytest.approx(back.means)
    assert forth.shares == pytest.approx(back.shares)
    if forth.trend_slope is not None:
        assert back.trend_slope == pytest.approx(-forth.trend_slope, abs=1e-6)


def test_windows_without_any_voice_still_have_means():
    (row,) = sum_up(channel_of(timeline([0.2, 0.4]), voiced_s=[0.0, 0.0]))
    assert row.negativity == pytest.approx(0.3)


# ------------------------------------------------------------------------------------------------- trend


@pytest.mark.parametrize(
    ("negativity", "trend"),
    [
        (np.linspace(0.1, 0.9, 20), "worsening"),
        (np.linspace(0.9, 0.1, 20), "improving"),
        (np.full(20, 0.8), "steady"),
        ([0.0, 1.0, 1.0], "steady"),  # too few windows
        ([0.0, 0.3, 0.6, 0.9], "worsening"),
    ],
)
def test_trend(negativity: list[float], trend: str):
    (row,) = sum_up(channel_of(timeline(negativity)))
    assert row.trend == trend
    assert (row.trend_slope is None) == (len(negativity) < 4)


def test_slope_is_the_change_over_the_whole_call():
    windows = timeline(np.linspace(0.1, 0.5, 10))
    (whole,) = sum_up(channel_of(windows))
    assert whole.trend_slope == pytest.approx(0.4 * 10 / 9, abs=1e-5)  # nine steps lie between ten middles
    (then_silent,) = sum_up(channel_of(windows + [[]] * 10))
    assert then_silent.trend_slope == pytest.approx(2 * whole.trend_slope, abs=1e-5)


def test_slope_is_clipped():
    (row,) = sum_up(channel_of(timeline([0.0, 0.0, 1.0, 1.0]) + [[]] * 50))
    assert row.trend_slope == 1.0


# ------------------------------------------------------------------------------------------------- escalation

CALM, CROSS = 0.15, 0.85


@pytest.mark.parametrize(
    ("story", "negativity", "first"),
    [
        ("flat and calm", [CALM] * 30, None),
        ("flat and cross", [CROSS] * 30, None),
        ("rises and stays", [CALM] * 10 + [CROSS] * 20, 10),
        ("rises, then the agent calms the caller", [CALM] * 10 + [CROSS] * 9 + [CALM] * 10, 10),
        ("single spike", [CALM] * 10 + [1.0] + [CALM] * 10, None),
        ("short outburst", [CALM] * 10 + [CROSS] * 3 + [CALM] * 10, None),
        ("spike, later a rise", [CALM] * 8 + [1.0] + [CALM] * 8 + [CROSS] * 10, 17),
        ("early negative", [CROSS] * 10 + [CALM] * 20, None),
        ("cross, calm, cross again", [CROSS] * 6 + [CALM] * 12 + [CROSS] * 12, 18),
        ("falls", list(np.linspace(0.9, 0.1, 30)), None),
        ("rises too late to last", [CALM] * 20 + [CROSS] * 2, None),
        ("rises at the end", [CALM] * 20 + [CROSS] * 3, 20),
        ("calm for one window only", [CALM] + [CROSS] * 20, None),
        ("calm for two: told a window late", [CALM] * 2 + [CROSS] * 20, 3),
        ("just enough before", [CALM] * 3 + [CROSS] * 20, 3),
        ("rises, but to a low level", [0.05] * 10 + [0.4] * 20, None),
        ("rises by too little", [0.45] * 10 + [0.6] * 20, None),
        ("a short call", [CALM, CROSS], None),
    ],
)
def test_escalation(story: str, negativity: list[float], first: int | None):
    (row,) = sum_up(channel_of(timeline(negativity)))
    assert row.escalation_s == (None if first is None else 3.0 * first), story
    assert row.escalated is (first is not None)


def test_a_slow_rise_escalates_once_on_the_way():
    (row,) = sum_up(channel_of(timeline(np.linspace(0.1, 0.9, 40))))
    assert 55 < row.escalation_s < 80  # level 0.5 is reached at 60 s


def test_windows_that_are_not_scored_are_passed_over():
    windows = timeline([CALM] * 5) + [[]] * 7 + timeline([CROSS] * 2) + [[]] + timeline([CROSS] * 6)
    (row,) = sum_up(channel_of(windows))
    assert row.escalation_s == 36.0


def test_a_long_voiced_spike_is_still_a_spike():
    voiced_s = np.full(21, 0.5)
    voiced_s[10] = 3.0
    (row,) = sum_up(channel_of(timeline([CALM] * 10 + [1.0] + [CALM] * 10), voiced_s))
    assert row.escalated is False


def test_a_wavering_classifier_rarely_raises_false_alarms():
    """Flat calls of 3 minutes with windows all over the place; and rises of half a minute are found all the same."""
    rng = np.random.default_rng(7)
    alarms = found = 0
    for _ in range(100):
        flat = rng.beta(1.2, 2.8, 60)
        (row,) = sum_up(channel_of(timeline(flat)))
        alarms += bool(row.escalated)
        rise = np.concatenate([rng.beta(1, 3, 25), rng.beta(3, 1, 10), rng.beta(1, 3, 25)])
        (row,) = sum_up(channel_of(timeline(rise)))
        found += row.escalation_s is not None and 66 <= row.escalation_s <= 84
    assert alarms <= 8
    assert found >= 85
