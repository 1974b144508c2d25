"""WindowScores → CallSummary: what a call's windows say together.

Every figure rests on the scored windows of one channel, each weighted by its voiced seconds w. Level plays no part
in any emotion. ``negativity`` of a window is the sum of its probabilities of the negative labels; a window's time is
its middle. The constants are fields of ``SummarySettings``.

Trend
    ``trend_slope`` is the slope of the w-weighted least-squares line through the negativity of the windows, with the
    call's length as the unit of time: the change over the whole call, clipped to −1…1. ``trend`` is ``worsening`` from
    ``trend_threshold`` on, ``improving`` from its negative on downwards, else ``steady``. With fewer than
    ``trend_min_windows`` (at least 2) scored windows it is ``steady`` and the slope null: a line through two or three
    windows says nothing of a call, and such slopes would stand first in every sorted list.

Escalation
    A call escalates at the start of the first scored window i that passes all of these. "Onset" is the
    ``escalation_windows`` (3) scored windows from i on, "aftermath" the ``escalation_lasting_windows`` (9) from i on or
    as many as the call still has, "before" all scored windows before i.

    1. Before holds at least ``escalation_windows`` windows, and so does the aftermath: a call that begins angry has
       not risen, and its last window alone is no rise that lasted.
    2. Window i itself and more than half of the onset have negativity ≥ ``escalation_level`` (0.5): it starts at the
       rise, not just ahead of it, and is no single spike, however long that spike is voiced.
    3. The onset's mean and the aftermath's mean are both ≥ ``escalation_level`` and both exceed the mean of before by
       ≥ ``escalation_rise`` (0.25).
    4. The aftermath's mean exceeds that of before by ≥ ``escalation_sigmas`` (3) standard errors of the difference
       of two means (pooled variance): where the classifier wavers from window to window, more is asked of a rise.

    A rise may end again (a good agent calms the caller) and still have lasted. Three angry windows in the middle of a
    calm call are an outburst: ``peak_*`` shows it, ``escalated`` stays False.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from batchser.records import (
    FLOOR_DBFS,
    KINDS,
    SPEECH,
    BoolArray,
    CallSummary,
    DoubleArray,
    WindowScores,
)
from batchser.settings import SummarySettings

#: The least weight of a scored window. It keeps every mean defined where a gate lets windows without voice pass.
MIN_WEIGHT_S: Final = 1e-6


@dataclass(frozen=True, slots=True)
class _Scored:
    """The scored windows of one channel, in order: float64 (n,), ``probabilities`` (n, L), ``abstained`` bool (n,)."""

    weights_s: DoubleArray
    start_s: DoubleArray
    middle_s: DoubleArray
    probabilities: DoubleArray
    negativity: DoubleArray
    abstained: BoolArray


def summarise(
    windows: Sequence[WindowScores],
    scored_channels: Collection[int],
    labels: Sequence[str],
    negative: Collection[str],
    settings: SummarySettings,
    *,
    duration_s: float,
    min_duration_s: float,
) -> tuple[CallSummary, ...]:
    """Sum up one recording: a row per scored channel, or one row with ``channel`` None where there is none.

    Parameters
    ----------
    windows : every channel of the recording, scored or not, each with all its windows
    scored_channels : the channels whose role is scored
    labels : the bundle's labels, in the order of ``WindowScores.probabilities``
    negative : those of ``labels`` that count as negative
    settings : the constants of trend and escalation
    duration_s : the recording's length, which the windows of each channel tile
    min_duration_s : below it a recording is ``too_short``

    Returns
    -------
    Summaries in the order of their channels, status ``not_scored``, ``too_short``, ``no_speech`` or ``ok``: the first
    that applies. The figures follow the windows whatever the status: those that rest on scored windows are None
    where there is none.

    Raises
    ------
    ValueError : a scored channel has no entry in ``windows``, or ``negative`` names a label that is none
    """
    if not scored_channels:
        return (CallSummary(status="not_scored", duration_s=float(duration_s)),)
    by_channel = {scores.channel: scores for scores in windows}
    missing = sorted(set(scored_channels) - set(by_channel))
    strange = sorted(set(negative) - set(labels))
    if missing or strange:
        raise ValueError(f"channels without windows: {missing}, negative labels unknown to the bundle: {strange}")
    is_negative = np.array([label in negative for label in labels], np.bool_)
    call_voiced_s = float(sum(scores.voiced_s.sum() for scores in windows))
    summaries = []
    for channel in sorted(scored_channels):
        scores = by_channel[channel]
        summary = _describe(scores, call_voiced_s, num_channels=len(windows), duration_s=duration_s)
        if scores.scored.any():
            summary = _judge(summary, _only_scored(scores, is_negative), labels, settings, duration_s)
        elif summary.status == "ok":
            summary = replace(summary, status="no_speech")
        if duration_s < min_duration_s:
            summary = replace(summary, status="too_short")
        summaries.append(summary)
    return tuple(summaries)


def failed(status: str, error: str, duration_s: float | None = None) -> CallSummary:
    """Return the one row of a recording that gave nothing: ``crashed``, ``failed`` or ``unreadable``, and why."""
    return CallSummary(status=status, error=error, duration_s=duration_s)


def _describe(scores: WindowScores, call_voiced_s: float, *, num_channels: int, duration_s: float) -> CallSummary:
    """Sum up what needs no emotion: seconds by kind, voice, overtalk and level of one channel."""
    length_s = scores.end_s - scores.start_s
    kind_s = [float(length_s[scores.kind == kind].sum()) for kind in range(len(KINDS))]
    voiced_s = float(scores.voiced_s.sum())
    speech_s, silence_s, music_s, tone_s, noise_s = kind_s
    return CallSummary(
        channel=int(scores.channel),
        role=scores.role,
        duration_s=float(duration_s),
        speech_s=speech_s,
        silence_s=silence_s,
        music_s=music_s,
        tone_s=tone_s,
        noise_s=noise_s,
        voiced_s=voiced_s,
        talk_share=voiced_s / call_voiced_s if call_voiced_s > 0 else None,
        # Where both parties share a channel, nobody can tell when they talk at once.
        overtalk_s=float(scores.overtalk_s.sum()) if num_channels > 1 else None,
        num_segments=len(scores.kind),
        num_scored=int(scores.scored.sum()),
        level_dbfs=_mean_level_dbfs(scores, length_s),
    )


def _mean_level_dbfs(scores: WindowScores, length_s: DoubleArray) -> float | None:
    """Return the mean power of the speech windows (of all where none is speech) in dB; None without windows."""
    chosen = scores.kind == SPEECH
    if not chosen.any():
        chosen = np.ones_like(chosen)
    total_s = float(length_s[chosen].sum())
    if total_s <= 0:
        return None
    power = 10.0 ** (scores.level_dbfs[chosen].astype(np.float64) / 10)  # float64 (n,)
    mean_power = float(length_s[chosen] @ power) / total_s
    return max(FLOOR_DBFS, 10 * float(np.log10(max(mean_power, 1e-300))))


def _only_scored(scores: WindowScores, is_negative: BoolArray) -> _Scored:
    """Keep the scored windows; ``is_negative`` bool (L,)."""
    keep = scores.scored
    probabilities = scores.probabilities[keep].astype(np.float64)
    return _Scored(
        weights_s=np.maximum(scores.voiced_s[keep], MIN_WEIGHT_S),
        start_s=scores.start_s[keep],
        middle_s=(scores.start_s[keep] + scores.end_s[keep]) / 2,
        probabilities=probabilities,
        negativity=probabilities[:, is_negative].sum(axis=1),
        abstained=scores.abstained[keep],
    )


def _judge(
    summary: CallSummary, scored: _Scored, labels: Sequence[str], settings: SummarySettings, duration_s: float
) -> CallSummary:
    """Add what the emotions of at least one scored window say to a channel's summary."""
    part = scored.weights_s / scored.weights_s.sum()
    means = part @ scored.probabilities  # float64 (L,)
    decided = np.where(scored.abstained, 0.0, part)
    shares = np.bincount(scored.probabilities.argmax(axis=1), decided, minlength=len(labels))
    best = int(means.argmax())
    peak = int(scored.negativity.argmax())
    slope = _trend_slope(scored, duration_s, settings)
    escalation_s = _escalation_s(scored, settings)
    return replace(
        summary,
        emotion=labels[best],
        confidence=float(means[best]),
        means=tuple(means.tolist()),
        shares=tuple(shares.tolist()),
        negativity=float(part @ scored.negativity),
        negativity_q=_quarters(scored, duration_s),
        trend=_trend(slope, settings),
        trend_slope=slope,
        escalated=escalation_s is not None,
        escalation_s=escalation_s,
        peak_emotion=labels[int(scored.probabilities[peak].argmax())],
        peak_start_s=float(scored.start_s[peak]),
        peak_score=float(scored.negativity[peak]),
        abstained_share=float(part[scored.abstained].sum()),
    )


def _quarters(scored: _Scored, duration_s: float) -> tuple[float | None, float | None, float | None, float | None]:
    """Return the mean negativity in each quarter of the call; a middle on a border belongs to the later quarter."""
    quarter = np.minimum((4 * scored.middle_s / duration_s).astype(np.int64), 3)

    def mean_of(number: int) -> float | None:
        inside = quarter == number
        if not inside.any():
            return None
        return float(np.average(scored.negativity[inside], weights=scored.weights_s[inside]))

    return mean_of(0), mean_of(1), mean_of(2), mean_of(3)


def _trend_slope(scored: _Scored, duration_s: float, settings: SummarySettings) -> float | None:
    """Return the change of negativity over the whole call along the fitted line, −1…1; None with too few windows."""
    if len(scored.negativity) < max(settings.trend_min_windows, 2):
        return None
    weights = scored.weights_s / scored.weights_s.sum()
    time = scored.middle_s / duration_s  # 0…1 of the call
    time = time - weights @ time
    slope = (weights * time) @ (scored.negativity - weights @ scored.negativity) / ((weights * time) @ time)
    return float(np.clip(slope, -1.0, 1.0))


def _trend(slope: float | None, settings: SummarySettings) -> str:
    """Name a slope."""
    if slope is None or abs(slope) < settings.trend_threshold:
        return "steady"
    return "worsening" if slope > 0 else "improving"


def _escalation_s(scored: _Scored, settings: SummarySettings) -> float | None:
    """Return when the first lasting rise into negativity starts (the rule: see the module), or None."""
    num_onset = max(settings.escalation_windows, 1)
    num_windows = len(scored.negativity)
    level, rise = settings.escalation_level, settings.escalation_rise
    # Sums up to each window, so that a day-long recording costs one pass: float64 (n + 1,)
    weight = _sums(scored.weights_s)
    weighted = _sums(scored.weights_s * scored.negativity)
    plain, squared = _sums(scored.negativity), _sums(scored.negativity**2)
    high = _sums((scored.negativity >= level).astype(np.float64))

    def mean(first: int, end: int) -> float:
        return float((weighted[end] - weighted[first]) / (weight[end] - weight[first]))

    def spread(first: int, end: int) -> float:
        """Return the sum of squared distances from the mean."""
        total = plain[end] - plain[first]
        return max(0.0, float(squared[end] - squared[first] - total**2 / (end - first)))

    for i in range(num_onset, num_windows - num_onset + 1):
        onset_end = i + num_onset
        if scored.negativity[i] < level or 2 * (high[onset_end] - high[i]) <= num_onset:
            continue
        end = min(i + max(settings.escalation_lasting_windows, num_onset), num_windows)
        before = mean(0, i)
        floor = max(level, before + rise)
        variance = (spread(0, i) + spread(i, end)) / max(end - 2, 1)
        noise = settings.escalation_sigmas * (variance * (1 / i + 1 / (end - i))) ** 0.5
        if mean(i, onset_end) >= floor and mean(i, end) >= max(floor, before + noise):
            return float(scored.start_s[i])
    return None


def _sums(values: DoubleArray) -> DoubleArray:
    """Return the sum of all values before each position: float64 (n,) → (n + 1,)."""
    return np.concatenate([np.zeros(1), np.cumsum(values)])
