"""Pictures: confusion matrix, reliability diagram, learning curves, a study's trials; matplotlib draws, off screen.

Colours are those of Okabe and Ito (2008), which the colour-blind can tell apart; what differs by colour also differs
by line or marker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from batchser.bundle import Bundle
from batchser.errors import ConfigError
from batchser.extras import load_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#767676"
_DPI: Final = 150
_DARK: Final = 0.6  # from this share on a cell's text is white


def write_pictures(folder: Path, bundle: Bundle, scores: Mapping[str, Any]) -> list[Path]:
    """Draw what there is to draw into ``folder``, which is made where it is missing.

    Parameters
    ----------
    folder : gets confusion.png (and confusion-CORPUS.png where there are several corpora), reliability.png, and
        learning-curves.png where the bundle's training kept its history; with composed calls confusion-calls.png
    bundle : named in the titles
    scores : as ``evaluate_bundle`` gives them

    Returns
    -------
    list[Path] : the files written

    Raises
    ------
    ConfigError : matplotlib is not installed, or the folder cannot be made or written to
    """
    make_ready(folder)
    clips, about = scores["clips"], f"{bundle.name}, protocol {scores['protocol']}"
    figures = {"confusion": confusion_picture(clips["confusion"], bundle.labels, f"{about}\n{_how_many(clips)}")}
    if len(clips["by_corpus"]) > 1:
        for name, own in clips["by_corpus"].items():
            title = f"{about}\n{name}: {_how_many(own)}"
            figures[f"confusion-{Path(name).stem}"] = confusion_picture(own["confusion"], bundle.labels, title)
    calls = scores.get("calls", {})
    if "confusion" in calls:
        title = f"{about}\n{calls['emotion_windows']} windows of composed calls, UAR {calls['uar']:.3f}"
        figures["confusion-calls"] = confusion_picture(calls["confusion"], bundle.labels, title)
    if clips["reliability"]:
        figures["reliability"] = reliability_picture(clips, about)
    history = bundle.training.get("history", {})
    if history:
        figures["learning-curves"] = learning_curves(history, about)
    return [_save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def make_ready(folder: Path) -> None:
    """Make the folder and see that matplotlib is there, before anything takes long.

    Raises
    ------
    ConfigError : matplotlib is not installed, or the folder cannot be made
    """
    load_extra("matplotlib", "train", "pictures need matplotlib")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--pictures {folder}: cannot be made ({error.strerror})") from error


def confusion_picture(matrix: Sequence[Sequence[int]], labels: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix, counts (L, L + 1): each row's shares as colour and per cent, with the counts below."""
    counts = np.asarray(matrix)
    labels_said = [*labels, "no speech"] if counts[:, -1].any() else list(labels)
    counts_shown = counts[:, : len(labels_said)]
    shares = counts_shown / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, (axes,) = _figure(1.6 + 0.95 * len(labels_said), 1.7 + 0.8 * len(labels))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if counts[row].any():
            colour = "white" if share > _DARK else "black"
            text = f"{share:.0%}\n{counts_shown[row, column]}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(labels_said)), labels_said, rotation=35, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="said", ylabel="true", title=title)
    figure.colorbar(image, ax=axes, label="share of the row", fraction=0.04, pad=0.02)
    return figure


def reliability_picture(clips: Mapping[str, Any], about: str) -> Figure:
    """Draw accuracy against confidence in bins of equal mass, before and after temperature scaling."""
    figure, (axes,) = _figure(6.4, 6.0)
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":", label="perfectly calibrated")
    series = (
        ("reliability_before", "calibration_error_before", "before temperature scaling", _ORANGE, "s", "--"),
        ("reliability", "calibration_error", "after", _BLUE, "o", "-"),
    )
    for key, error, name, colour, marker, line in series:
        x, y = ([b[what] for b in clips[key]] for what in ("confidence", "accuracy"))
        label = f"{name}: error {clips[error]:.3f}"
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linestyle=line, linewidth=1.4, label=label)
    sizes = [b["count"] for b in clips["reliability"]]
    bins = f"{len(sizes)} bins of {min(sizes)}" + (f" to {max(sizes)}" if max(sizes) > min(sizes) else "") + " clips"
    axes.axvline(clips["threshold"], color=_GREY, linewidth=1, linestyle="-.", label="abstains to the left")
    axes.set(xlabel="mean confidence of a bin", ylabel="share of the bin that is right", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"{about}\n{bins} each")
    axes.set_aspect("equal")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(loc="upper left", fontsize=9)
    return figure


def learning_curves(history: Mapping[str, Mapping[str, Sequence[float]]], about: str) -> Figure:
    """Draw training and validation loss by epoch, one small panel a fit: {fit: {"loss": [...], "val_loss": [...]}}."""
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(history))
    rows = -(-len(history) // columns)
    figure, panels = _figure(3.6 * columns + 0.6, 2.7 * rows + 0.7, rows, columns)
    for panel in panels[len(history) :]:
        panel.set_visible(False)
    for panel, (name, curves) in zip(panels, history.items(), strict=False):
        for key, label, colour, line in (("loss", "training", _ORANGE, "--"), ("val_loss", "validation", _BLUE, "-")):
            values = curves.get(key, [])
            panel.plot(range(1, len(values) + 1), values, color=colour, linestyle=line, label=label, linewidth=1.5)
        if curves.get("val_loss"):
            best = int(np.argmin(curves["val_loss"]))
            panel.plot(best + 1, curves["val_loss"][best], color=_BLUE, marker="o", linestyle="", label="lowest")
        panel.set_title(name)
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.set_xlabel("epoch")
    for panel in panels[::columns]:
        panel.set_ylabel("loss")
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{about}: learning curves", fontsize=11)
    return figure


def tuning_picture(
    trials: Sequence[tuple[int, float, bool]], importances: Mapping[str, float], about: str, path: Path
) -> Path:
    """Draw a study into ``path``: its trials (number, UAR, whether complete), and the share of each key that mattered.

    Raises
    ------
    ConfigError : the file cannot be written
    """
    figure, (left, right) = _figure(11.0, 2.2 + 0.35 * max(6, len(importances)), 1, 2)
    for complete, label, colour, marker in ((True, "complete", _BLUE, "o"), (False, "pruned", _GREY, "x")):
        shown = [(number, uar) for number, uar, ended in trials if ended == complete]
        left.plot(*np.transpose(shown) if shown else ([], []), color=colour, marker=marker, linestyle="", label=label)
    done = sorted((number, uar) for number, uar, complete in trials if complete)
    if done:
        best = np.maximum.accumulate([uar for _, uar in done])
        left.step([number for number, _ in done], best, where="post", color=_ORANGE, linewidth=1.4, label="best so far")
    left.set(xlabel="trial (0: the recipe as it stands)", ylabel="UAR, mean of the parts", title=f"{about}: trials")
    left.grid(color="#dddddd", linewidth=0.6)
    left.legend(fontsize=9)
    names = list(importances)[::-1]
    right.barh(names, [importances[name] for name in names], color=_BLUE)
    right.set(xlabel="share of the variance of UAR", title="what mattered" if names else "too few trials to say")
    return _save(figure, path)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure without a screen, and its panels row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for panel in panels:
        panel.title.set_fontsize(10)
    return figure, list(panels)


def _save(figure: Figure, path: Path) -> Path:
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"--pictures {path.parent}: cannot be written ({error.strerror})") from error
    return path


def _how_many(scores: Mapping[str, Any]) -> str:
    return f"{scores['clips']} clips of {scores['speakers']} speakers, UAR {scores['uar']:.3f}"
