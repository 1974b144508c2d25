"""Figures as plotly.js draws them: plain dictionaries of ``data`` and ``layout``. Names of others' are made inert here.

Emotions differ in colour and in pattern, for the colour-blind and for print. Colours are of Okabe and Ito (2008).
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from batchser.results.opening import records

if TYPE_CHECKING:
    from batchser.listening import Picture

Figure = dict[str, Any]

_LOOKS: Final = {
    "angry": ("#d55e00", "/"),
    "fearful": ("#cc79a7", "x"),
    "disgust": ("#009e73", "\\"),
    "sad": ("#0072b2", "-"),
    "neutral": ("#8c8c8c", ""),
    "calm": ("#b8c4a0", ""),
    "happy": ("#e69f00", "."),
    "surprised": ("#56b4e9", "+"),
}
_SPARE_COLOURS: Final = ("#7b5aa6", "#a0522d", "#4b8b8b", "#8a8a2b")
_SPARE_PATTERNS: Final = ("|", "/", "\\", "x")
UNSURE: Final = "unsure"
_UNSURE_LOOK: Final = ("#dddddd", "")
_INK, _GRID, _ACCENT = "#1f2430", "#d9dce3", "#0b5394"
_MOST_BARS: Final = 600  # of a timeline: half an hour, and more than a page has pixels for
_WINDOW_S: Final = 3.0
_TICK_STEPS_S: Final = (5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_MOST_TICKS: Final = 9
_NAME_CHARACTERS: Final = 28
_HZ_TICKS: Final = (250, 500, 1000, 2000, 3000)


def look_of(label: str, labels: Sequence[str]) -> tuple[str, str]:
    """Return an emotion's colour and pattern."""
    if label == UNSURE:
        return _UNSURE_LOOK
    if label in _LOOKS:
        return _LOOKS[label]
    number = [name for name in labels if name not in _LOOKS].index(label)
    return _SPARE_COLOURS[number % len(_SPARE_COLOURS)], _SPARE_PATTERNS[number // len(_SPARE_COLOURS) % 4]


def inert(text: Any) -> str:
    """Return a text that plotly.js shows as it is: it takes a few HTML tags for real otherwise."""
    return html.escape(str(text), quote=False)


def shortened(text: Any) -> str:
    """Return a name that leaves room for its bar, inert."""
    whole = str(text)
    return inert(whole if len(whole) <= _NAME_CHARACTERS else f"{whole[: _NAME_CHARACTERS - 1]}…")


def clock(seconds: float) -> str:
    """Return seconds as people say them: 1:05, 1:02:05."""
    minutes, rest = divmod(math.floor(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --------------------------------------------------------------------------------------------------- of many calls


def emotion_bars(groups: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """Draw how each group's voiced time sounds (``night.emotions_by``): one bar a group, together 100 %."""
    names = [inert(name) for name in groups.index]
    places = list(range(len(groups)))
    data = []
    for label in (*labels, UNSURE):
        values = (groups[label] * 100).round(1)
        told = [f"{name}: {inert(label)} {value:.0f} %" for name, value in zip(names, values, strict=True)]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": inert(label),
                "x": values.tolist(),
                "y": places,
                "marker": _marker(label, labels),
                "hovertext": told,
                "hoverinfo": "text",
            }
        )
    layout = _layout(height=70 + 30 * len(groups))
    layout |= {"barmode": "stack", "bargap": 0.25}
    layout["xaxis"] |= {"range": [0, 101], "dtick": 20, "ticksuffix": " %", "fixedrange": True}
    ticks = {"tickvals": places, "ticktext": [shortened(name) for name in groups.index]}
    layout["yaxis"] |= ticks | {"autorange": "reversed", "automargin": True, "fixedrange": True}
    return {"data": data, "layout": layout}


def nights_line(nights: pd.DataFrame) -> Figure:
    """Draw negativity night by night with its interval (``night.by_night``)."""
    days = list(nights.index)
    told = [
        f"{day}: negativity {row.negativity:.2f} ({row.scored} calls, {row.attention} need a person)"
        for day, row in zip(days, nights.itertuples(), strict=True)
    ]
    band = {"type": "scatter", "mode": "lines", "x": days, "line": {"width": 0}, "hoverinfo": "skip"}
    data = [
        band | {"y": _numbers(nights["low"])},
        band | {"y": _numbers(nights["high"]), "fill": "tonexty", "fillcolor": "rgba(11,83,148,0.18)"},
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": days,
            "y": _numbers(nights["negativity"]),
            "line": {"color": _ACCENT},
            "hovertext": told,
            "hoverinfo": "text",
        },
    ]
    layout = _layout(height=260)
    layout["xaxis"] |= {"type": "category", "nticks": 12, "fixedrange": True}
    layout["yaxis"] |= {"title": {"text": "negativity"}, "rangemode": "tozero", "fixedrange": True}
    return {"data": data, "layout": layout}


def histogram(values: pd.Series, *, title: str, most: float, suffix: str = "") -> Figure:
    """Draw how many rows have which value, in twenty steps from 0 to ``most``."""
    counts, edges = np.histogram(values.dropna().clip(0, most), bins=20, range=(0, most))
    told = [
        f"{low:g} to {high:g}{suffix}: {count}"
        for low, high, count in zip(edges.round(3), edges[1:].round(3), counts, strict=False)
    ]
    data = [
        {
            "type": "bar",
            "x": ((edges[:-1] + edges[1:]) / 2).round(4).tolist(),
            "y": counts.tolist(),
            "marker": {"color": _ACCENT},
            "hovertext": told,
            "hoverinfo": "text",
        }
    ]
    layout = _layout(height=240) | {"bargap": 0.05}
    layout["xaxis"] |= {"title": {"text": title}, "ticksuffix": suffix, "range": [0, most], "fixedrange": True}
    layout["yaxis"] |= {"title": {"text": "scored channels"}, "fixedrange": True}
    return {"data": data, "layout": layout}


def probability_bars(means: dict[str, float], labels: Sequence[str]) -> Figure:
    """Draw the mean probability of each emotion in a recording."""
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [round(means[label], 3)],
            "y": [inert(label)],
            "marker": _marker(label, labels),
            "text": [f"{means[label]:.2f}"],
            "textposition": "outside",
            "cliponaxis": False,
            "hoverinfo": "skip",
        }
        for label in labels
    ]
    layout = _layout(height=60 + 30 * len(labels))
    layout["barmode"] = "overlay"
    layout["xaxis"] |= {"range": [0, 1], "fixedrange": True}
    layout["yaxis"] |= {"autorange": "reversed", "automargin": True, "fixedrange": True}
    return {"data": data, "layout": layout}


# --------------------------------------------------------------------------------------------------- of one call


def timeline(windows: pd.DataFrame, labels: Sequence[str], negative: Sequence[str]) -> Figure:
    """Draw a channel's scored windows: as high as they are negative, coloured by emotion, pale where unsure."""
    layout = _layout(height=150)
    layout["margin"] = {"l": 40, "r": 10, "t": 6, "b": 30}
    end_s = float(windows["end_s"].max()) if len(windows) else 1.0
    layout["xaxis"] |= _time_axis(end_s)
    layout["yaxis"] |= _NEGATIVITY_AXIS
    layout["barmode"] = "overlay"
    return {"data": list(_bars(_thinned(windows, labels), labels, negative)), "layout": layout}


def call_picture(picture: Picture, channel: int, windows: pd.DataFrame, labels: Sequence[str],
                 negative: Sequence[str]) -> Figure:  # fmt: skip
    """Draw a channel of a recording: its waves, its mel spectrogram, its windows; all over one axis of time.

    ``picture`` : of the recording; ``windows`` : the channel's scored ones
    """
    columns = picture.lowest.shape[1]
    times = np.arange(columns) * picture.wave_column_s
    edge = {"type": "scatter", "mode": "lines", "x": _packed(times, "f4"), "line": {"width": 0.5, "color": _ACCENT}}
    waves = {"hoverinfo": "none", "yaxis": "y3", "showlegend": False}
    mel = {
        "type": "heatmap",
        "z": _packed(picture.mel_db[channel], "i1"),
        "x0": picture.mel_column_s / 2,
        "dx": picture.mel_column_s,
        "colorscale": "Viridis",
        "zmin": -80,
        "zmax": 0,
        "showscale": False,
        "hoverinfo": "none",
        "yaxis": "y2",
    }
    data = [
        edge | waves | {"y": _packed(picture.lowest[channel], "f4")},
        edge | waves | {"y": _packed(picture.highest[channel], "f4"), "fill": "tonexty", "fillcolor": _ACCENT},
        mel,
        *_bars(windows, labels, negative),
    ]
    bands = [int(np.abs(picture.mel_hz - hz).argmin()) for hz in _HZ_TICKS]
    layout = _layout(height=520) | {"barmode": "overlay", "hovermode": "closest"}
    layout["margin"] |= {"l": 75}
    layout["xaxis"] |= _time_axis(picture.duration_s) | {"anchor": "y"}
    layout["yaxis"] |= _NEGATIVITY_AXIS | {"domain": [0, 0.3], "title": {"text": "negativity"}}
    axis = {"fixedrange": True, "automargin": False}
    layout["yaxis2"] = axis | {
        "domain": [0.34, 0.72], "tickvals": bands, "ticktext": [f"{hz / 1000:g} kHz" for hz in _HZ_TICKS],
    }  # fmt: skip
    layout["yaxis3"] = axis | {"domain": [0.76, 1], "range": [-1, 1], "tickvals": [-1, 0, 1]}
    return {"data": data, "layout": layout}


_NEGATIVITY_AXIS: Final = {"range": [0, 1], "tickvals": [0, 0.5, 1], "fixedrange": True}


def _bars(windows: pd.DataFrame, labels: Sequence[str], negative: Sequence[str]) -> Iterator[Figure]:
    """Give a trace for each emotion: windows as bars, as wide as they are long."""
    heights = windows[[f"p_{label}" for label in negative]].sum(axis=1)
    for label in labels:
        chosen = windows[windows["emotion"] == label]
        if chosen.empty:
            continue
        length = chosen["end_s"] - chosen["start_s"]
        yield {
            "type": "bar",
            "name": inert(label),
            "x": (chosen["start_s"] + length / 2).round(3).tolist(),
            "width": length.round(3).tolist(),
            "y": heights[chosen.index].clip(lower=0.02).round(3).tolist(),
            "marker": _marker(label, labels) | {"opacity": [0.45 if pale else 1 for pale in chosen["abstained"]]},
            "hovertext": [_told(row, labels) for row in records(chosen)],
            "hoverinfo": "text",
        }


def _told(row: dict[str, Any], labels: Sequence[str]) -> str:
    sure = "unsure: " if row["abstained"] else ""
    best = sorted(labels, key=lambda label: -row[f"p_{label}"])
    return f"{clock(row['start_s'])} {sure}" + "<br>".join(f"{inert(name)} {row[f'p_{name}']:.2f}" for name in best)


def bar_s(windows: pd.DataFrame) -> float:
    """Return how long a bar of a timeline is: a window, or of a very long call several, so that a page can show it."""
    if windows.empty:
        return _WINDOW_S
    num_windows = math.ceil(float(windows["end_s"].max()) / _WINDOW_S)
    return _WINDOW_S * math.ceil(num_windows / _MOST_BARS)


def _thinned(windows: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Put the windows of each bar together: means weighted by voiced seconds, unsure where most of these are."""
    length_s = bar_s(windows)
    if length_s == _WINDOW_S:
        return windows
    names = [f"p_{label}" for label in labels]
    bar = (windows["start_s"] // length_s).astype(int)
    weight = windows["voiced_s"].clip(lower=1e-3)
    values = windows[names].assign(abstained=windows["abstained"].astype("float64"))
    means = values.mul(weight, axis=0).groupby(bar).sum().div(weight.groupby(bar).sum(), axis=0)
    start_s = means.index.to_numpy() * length_s
    return means.assign(
        start_s=start_s,
        end_s=start_s + length_s,
        abstained=means["abstained"] > 0.5,
        emotion=[labels[best] for best in means[names].to_numpy().argmax(axis=1)],
    )


# --------------------------------------------------------------------------------------------------- shared


def _marker(label: str, labels: Sequence[str]) -> Figure:
    colour, pattern = look_of(label, labels)
    return {"color": colour, "pattern": _pattern(pattern)} if pattern else {"color": colour}


def _pattern(shape: str) -> Figure:
    """White on the emotion's colour."""
    return {"shape": shape, "solidity": 0.2, "size": 6, "fillmode": "overlay", "fgcolor": "#ffffff", "fgopacity": 0.8}


def _layout(height: int) -> Figure:
    axis = {"gridcolor": _GRID, "zeroline": False, "linecolor": _GRID}
    return {
        "height": height,
        "margin": {"l": 50, "r": 16, "t": 10, "b": 40},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": _INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "dragmode": False,
        "xaxis": dict(axis),
        "yaxis": dict(axis),
    }


def _time_axis(end_s: float) -> Figure:
    step = next((step for step in _TICK_STEPS_S if end_s / step <= _MOST_TICKS), _TICK_STEPS_S[-1])
    ticks = list(range(0, math.floor(end_s) + 1, step))
    return {"range": [0, end_s], "tickvals": ticks, "ticktext": [clock(tick) for tick in ticks], "fixedrange": True}


def _numbers(values: pd.Series) -> list[float | None]:
    return [None if pd.isna(value) else round(float(value), 4) for value in values]


def _packed(values: Any, dtype: str) -> Figure:
    """Return an array as plotly.js unpacks it: a tenth of what it takes as text."""
    array = np.ascontiguousarray(values, dtype)
    packed = {"dtype": dtype, "bdata": base64.b64encode(array.tobytes()).decode()}
    return packed if array.ndim == 1 else packed | {"shape": ", ".join(str(size) for size in array.shape)}
