"""Fits kept on disk: a run that was killed takes those that are finished and goes on with the others."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np

from batchser.records import FloatArray, IntArray
from batchser.settings import fingerprint_of
from batchser.training.distil import Teaching, taught_targets
from batchser.training.fit import Draws, Examples, Fitted, Start, Task, Watch, fit, tell_again
from batchser.training.store import makers
from batchser.training.workers import Report

#: What decides how a fit ends, besides what is fitted.
_SOURCES: Final = (
    "networks.py", "scoring.py", "settings.py", "training/fit.py", "training/perturb.py", "training/distil.py",
)  # fmt: skip
_LIBRARIES: Final = ("numpy", "scipy", "keras", "tensorflow")


def fit_or_take(
    task: Task,
    folder: Path,
    targets: FloatArray | IntArray,
    draws: Draws | None,
    start: Start | None,
    teaching: Teaching | None,
    work: Path,
    report: Report,
    watch: Watch | None = None,
) -> Fitted:
    """Fit a task, or take the fit that an earlier run of the same task has kept in ``work``.

    What is taken was made from the same windows, clips, targets and settings by the same code: the file's name has
    their fingerprint.
    """
    key = fingerprint_of([
        makers(_SOURCES, _LIBRARIES),
        asdict(task) | {"train": task.train.tolist(), "valid": task.valid.tolist()}, folder.name,
        fingerprint_of(targets.round(4).tolist()) if targets.ndim == 2 else "", start.key if start else "",
        *([teaching.key()] if teaching else []),
        *([] if draws is None else [draws.groups.tolist(), draws.weights.tolist()]),
    ])[:16]  # fmt: skip
    path = work / f"fit-{task.name}-{key}.npz"
    if path.is_file():
        report(f"{task.name}: taken from {path}")
        fitted = _read_fit(path)
        if watch is not None:
            tell_again(fitted.history, watch)
        return fitted
    inputs = np.load(folder / "inputs.npy", mmap_mode="r")
    if teaching is not None:
        targets = taught_targets(inputs, np.asarray(targets, np.float32), task.train, teaching)
    examples = Examples(inputs, targets, draws)
    state = work / f"fit-{task.name}-{key}.state.npz"
    fitted = fit(examples, task, lambda line: report(f"{task.name}: {line}"), state, start, watch)
    about = {
        "weights": len(fitted.weights),
        "temperature": fitted.temperature,
        "history": fitted.history,
        "valid_uar": fitted.valid_uar,
    }
    arrays = {f"{k:03d}": array for k, array in enumerate(fitted.weights)} | {"mean": fitted.mean, "std": fitted.std}
    beside = path.with_suffix(".part.npz")
    np.savez(beside, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]  # as in bundle.py
    beside.replace(path)
    state.unlink(missing_ok=True)
    return fitted


def _read_fit(path: Path) -> Fitted:
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        weights = [file[f"{k:03d}"] for k in range(about["weights"])]
        return Fitted(
            weights, file["mean"], file["std"], **{k: about[k] for k in ("temperature", "history", "valid_uar")}
        )
