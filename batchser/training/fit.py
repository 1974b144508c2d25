"""Fitting: training windows → weights. Everything random comes from one seed, and a killed fit goes on where it was.

A fit's state (weights, optimizer, curves, epoch) is written to a file after every epoch; what is drawn in an epoch
depends on the seed and the epoch's number alone, so a fit that was killed ends as one that was not.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from batchser import networks
from batchser.bundle import NetworkSpec
from batchser.records import FloatArray, IntArray
from batchser.scoring import inference, softmax
from batchser.settings import FeatureSettings, has_fast_bfloat16
from batchser.training.perturb import LineNoise, mask, mix, warp
from batchser.training.recipe import FitSettings
from batchser.training.workers import Report

if TYPE_CHECKING:
    import keras

    from batchser.scoring import Network

#: Told after every epoch its number, from 1, and the UAR on the validation examples; what it raises ends the fit.
Watch = Callable[[int, float], None]
_INFERENCE_BATCH: Final = 256
_SCALER_CLIPS: Final = 500
_RAKINGS: Final = 50


@dataclass(frozen=True, slots=True)
class Draws:
    """How often examples are drawn (``FitSettings.balance``, ``corpus_weights``).

    ``groups`` is int (n, g), a column for each kind of group that is to come up equally often (none: g is 0);
    ``weights`` is float (n,): how much more often, or less, an example comes up than they have it.
    """

    groups: IntArray
    weights: npt.NDArray[np.float64]

    def chances(self, rows: IntArray) -> npt.NDArray[np.float64]:
        """Chances (m,) of the examples ``rows`` (m,) among themselves.

        They are raked (Deming and Stephan 1940) until the groups of every kind come up equally often, as far as the
        examples allow it, and weighed then.
        """
        groups, found = self.groups[rows], np.full(len(rows), 1 / len(rows))
        for _ in range(_RAKINGS):
            for column in groups.T:
                found /= np.bincount(column, found)[column]
        found *= self.weights[rows]
        return np.asarray(found / found.sum())


@dataclass(frozen=True, slots=True)
class Examples:
    """Training windows ready for a network.

    ``inputs`` is float16 (n, copies, T, F), often a file mapped into memory: the copies of an example are drawn from in
    turn, one an epoch. ``targets`` is float32 (n, L) or (n, copies, L), probabilities of the labels, or int
    (n, copies, chunks) for one label a chunk. Without ``draws`` each is taken once an epoch.
    """

    inputs: npt.NDArray[np.float16]
    targets: FloatArray | IntArray
    draws: Draws | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One fit: which examples of the whole train and which validate, and what is fitted to them.

    Early stopping and calibration look at ``valid``; take other speakers for it where that matters. Inputs are divided
    by their deviation. ``features`` are those of the inputs (None: the gate's levels): they say whether the mean is
    taken out before, and how noise is added.
    """

    name: str
    train: IntArray
    valid: IntArray
    network: NetworkSpec
    num_outputs: int
    settings: FitSettings
    seed: int
    features: FeatureSettings | None = None

    @property
    def remove_mean(self) -> bool:
        """Whether the scaler takes the mean of the inputs out."""
        return self.features is not None and not self.features.around_zero


@dataclass(frozen=True, slots=True)
class Start:
    """Where a fit starts from other than chance: another network of the same build, with its scaler.

    ``columns`` has for each label of the new network its place among the other's labels, −1 where that has none: the
    last layer starts with the columns of the labels they share. ``key`` stands for all of it.
    """

    key: str
    weights: list[FloatArray]
    mean: FloatArray
    std: FloatArray
    columns: tuple[int, ...]

    def weights_for(self, network: keras.Model) -> list[FloatArray]:
        """Give the weights for ``network``, in Keras's order; labels that are new keep its own."""
        fresh = [np.array(w) for w in network.get_weights()]
        known = [k for k, column in enumerate(self.columns) if column >= 0]
        taken = [self.columns[k] for k in known]
        for own, other in zip(fresh[-2:], self.weights[-2:], strict=True):  # the last layer's kernel and bias
            own[..., known] = other[..., taken]
        return [*self.weights[:-2], *fresh[-2:]]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted network: weights in Keras's order, its scaler float32 (F,), its temperature, and its curves.

    ``valid_uar`` is the UAR of these weights on the validation examples, before calibration.
    """

    weights: list[FloatArray]
    mean: FloatArray
    std: FloatArray
    temperature: float
    history: dict[str, list[float]]
    valid_uar: float = math.nan


def fit(
    examples: Examples,
    task: Task,
    report: Report,
    state: Path | None = None,
    start: Start | None = None,
    watch: Watch | None = None,
) -> Fitted:
    """Fit a network with early stopping, then calibrate it on the validation examples.

    Parameters
    ----------
    examples, task : the windows, and which of them are for what
    report : takes a line of progress an epoch
    state : the file that the fit's state is kept in after every epoch, and taken from where it is there
    start : weights to start from, of a network of the same build
    watch : told the UAR after every epoch, those of the state too

    Returns
    -------
    Fitted : the weights of the epoch with the lowest validation loss, or the mean of the last ones where that is
        lower
    """
    import keras

    settings = task.settings
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(_policy(settings.precision))
    try:
        _, _, num_frames, num_features = examples.inputs.shape
        with seeded(task.seed):
            network = networks.build(
                task.network.name, num_frames, num_features, task.num_outputs, task.network.options
            )
        steps = max(1, len(task.train) // settings.batch_size)
        network.compile(
            optimizer=keras.optimizers.AdamW(
                _learning_rate(settings, steps), weight_decay=settings.weight_decay, clipnorm=settings.clip_norm or None
            ),
            loss=keras.losses.CategoricalCrossentropy(from_logits=True),
            jit_compile=False,  # XLA took twice as long a step on a CPU, and a minute to compile
        )
        network.optimizer.build(network.trainable_variables)
        run = _Fit(network, examples, task, steps, start)
        return _fitted(run, report, state, watch)
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let Keras draw the seeds of weights and dropouts from a generator of its own while it builds a network.

    Keras draws them from Python's one generator for all, and so do other threads, such as those of a Dask worker: one
    network in five began with other weights there.
    """
    import keras

    keras.utils.set_random_seed(seed)
    generator: Any = importlib.import_module("keras.src.random.seed_generator")
    shared = generator.python_random
    generator.python_random = random.Random(seed)  # noqa: S311  # the shared one's numbers, undisturbed
    try:
        yield
    finally:
        generator.python_random = shared


def _policy(precision: str) -> str:
    fast = precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16())
    return "mixed_bfloat16" if fast else "float32"


def _learning_rate(settings: FitSettings, steps: int) -> Any:
    """A schedule of Keras for cosine, else the number itself, which ``_Fit`` halves on a plateau."""
    import keras

    if settings.schedule != "cosine":
        return settings.learning_rate
    warm_up = min(settings.warm_up_steps, steps * settings.epochs // 4)
    if not warm_up:
        return keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps * settings.epochs, alpha=0.02)
    return keras.optimizers.schedules.CosineDecay(
        1e-5, max(1, steps * settings.epochs - warm_up), alpha=0.02,
        warmup_target=settings.learning_rate, warmup_steps=warm_up,
    )  # fmt: skip


def _fitted(run: _Fit, report: Report, state: Path | None, watch: Watch | None) -> Fitted:
    """Run the epochs that are left, pick the weights and calibrate them."""
    settings = run.task.settings
    if state is not None and state.is_file():
        run.load(state)
        report(f"goes on after epoch {run.epoch} of {settings.epochs}")
    if watch is not None:
        tell_again(run.history, watch)
    started, first = time.monotonic(), run.epoch
    while run.epoch < settings.epochs and run.epochs_since_best < settings.patience:
        loss, valid_loss = run.run_epoch()
        if state is not None:
            run.save(state)
        if watch is not None:
            watch(run.epoch, run.history["val_uar"][-1])
        left_s = (time.monotonic() - started) / (run.epoch - first) * (settings.epochs - run.epoch)
        report(
            f"epoch {run.epoch}/{settings.epochs}: loss {loss:.3f}, validation loss {valid_loss:.3f}, "
            f"at most {left_s / 60:.1f} min left"
        )
    return run.finish()


def tell_again(history: dict[str, list[float]], watch: Watch) -> None:
    """Tell the epochs that are past already, of a fit that goes on or was taken from disk."""
    for epoch, uar in enumerate(history["val_uar"], start=1):
        watch(epoch, uar)


@dataclass(slots=True)
class _Fit:
    """A fit on its way, epoch by epoch."""

    network: keras.Model
    examples: Examples
    task: Task
    steps: int
    start: Start | None = None
    epoch: int = 0
    best_loss: float = float("inf")
    epochs_since_best: int = 0
    best: list[FloatArray] = field(default_factory=list)
    last: list[list[FloatArray]] = field(default_factory=list)
    history: dict[str, list[float]] = field(default_factory=lambda: {"loss": [], "val_loss": [], "val_uar": []})
    mean: FloatArray = field(init=False)
    std: FloatArray = field(init=False)
    score: Network = field(init=False)
    noise: LineNoise | None = None
    norms: list[tuple[Any, Network]] = field(default_factory=list)  # each with the moments of what reaches it

    def __post_init__(self) -> None:
        """Find the scaler on training examples alone, on all of their copies, or take the one of the start."""
        if self.start is not None:
            self.network.set_weights(self.start.weights_for(self.network))
        rng = np.random.default_rng([self.task.seed, 4])
        some = np.sort(rng.choice(self.task.train, min(_SCALER_CLIPS, len(self.task.train)), replace=False))
        inputs = self.examples.inputs
        # Of all kinds: the first copy may be the only one without noise, and noise far outside its deviation.
        copies = rng.integers(0, inputs.shape[1], len(some))
        values = np.asarray(inputs[some, copies], np.float32).reshape(-1, inputs.shape[-1])
        self.mean = (values.mean(axis=0) if self.task.remove_mean else np.zeros(values.shape[1])).astype(np.float32)
        self.std = np.maximum(values.std(axis=0), 1e-3).astype(np.float32)
        if self.start is not None:
            self.mean, self.std = self.start.mean, self.start.std
        self.score = inference(self.network, *self.examples.inputs.shape[2:])
        if self.task.features is not None and self.task.settings.noise_probability:
            self.noise = LineNoise.of(self.task.features)
        if self.task.settings.norm_windows:
            self.norms = [
                (norm, inference(_moments_before(norm, self.network), *self.examples.inputs.shape[2:]))
                for norm in networks.batch_norms(self.network)
            ]

    def _examples(
        self, rows: IntArray, copies: IntArray, rng: np.random.Generator | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Scaled inputs float32 (B, T, F), with ``rng`` noisy ones, and targets float32 (B, [chunks,] outputs)."""
        x = self.examples.inputs[rows, copies].astype(np.float32)
        if rng is not None and self.noise is not None:
            x = self.noise.add(rng, x, self.task.settings)
        x = np.asarray((x - self.mean) / self.std, np.float32)
        targets = self.examples.targets
        if targets.ndim == 2:
            return x, np.asarray(targets[rows], np.float32)
        taken = targets[rows, copies]
        if taken.dtype == np.float32:
            return x, np.asarray(taken, np.float32)
        return x, np.eye(self.task.num_outputs, dtype=np.float32)[taken]

    def run_epoch(self) -> tuple[float, float]:
        """Train one epoch and look at the validation examples: mean training loss, validation loss."""
        settings = self.task.settings
        rng = np.random.default_rng([self.task.seed, 1, self.epoch])
        order = draw_order(rng, self.task.train, self.examples.draws)
        losses = []
        for k in range(self.steps):
            rows = order[k * settings.batch_size : (k + 1) * settings.batch_size]
            x, y = self._examples(rows, rng.integers(0, self.examples.inputs.shape[1], len(rows)), rng)
            warp(rng, x, settings, self.task.features.num_bands if self.task.features else None)
            mask(rng, x, settings)
            if settings.mixup:
                x, y = mix(rng, x, y, settings.mixup)
            y = y * (1 - settings.label_smoothing) + settings.label_smoothing / self.task.num_outputs
            losses.append(float(self.network.train_on_batch(x, y)))
        loss = float(np.mean(losses))
        self._settle_norms()
        valid_loss, valid_uar = self._judged()
        self.epoch += 1
        self._note(loss, valid_loss, valid_uar)
        return loss, valid_loss

    def _settle_norms(self) -> None:
        """Find batch norms' statistics anew, on training windows as they are met in use (``norm_windows``)."""
        if not self.norms:
            return
        settings = self.task.settings
        rng = np.random.default_rng([self.task.seed, 5, self.epoch])  # training draws what it would without
        rows = draw_order(rng, self.task.train, self.examples.draws)[: settings.norm_windows]
        x, _ = self._examples(rows, rng.integers(0, self.examples.inputs.shape[1], len(rows)), rng)
        parts = [x[k : k + settings.batch_size] for k in range(0, len(x), settings.batch_size)]
        for norm, moments in self.norms:  # from the first on: it changes what reaches the next
            found = [np.asarray(moments(part), np.float64) for part in parts]
            mean, square = np.average(found, axis=0, weights=[len(part) for part in parts])
            norm.moving_mean.assign(mean)
            norm.moving_variance.assign(np.maximum(square - mean**2, 0))

    def _validate(self) -> tuple[FloatArray, FloatArray]:
        """Logits float32 (m, [chunks,] L) and targets of the validation examples, some copies of each."""
        copies = min(self.task.settings.validation_copies, self.examples.inputs.shape[1])
        rows, taken = np.repeat(self.task.valid, copies), np.tile(np.arange(copies), len(self.task.valid))
        logits, targets = [], []
        for k in range(0, len(rows), _INFERENCE_BATCH):
            part = slice(k, k + _INFERENCE_BATCH)
            x, y = self._examples(rows[part], taken[part])
            logits.append(np.asarray(self.score(x), np.float32))
            targets.append(y)
        return np.concatenate(logits), np.concatenate(targets)

    def _judged(self) -> tuple[float, float]:
        """Loss and UAR on the validation examples."""
        logits, targets = self._validate()
        loss = float(-(targets * np.log(softmax(logits) + 1e-9)).sum(axis=-1).mean())
        return loss, mean_recall(logits, targets.argmax(axis=-1))

    def _note(self, loss: float, valid_loss: float, valid_uar: float) -> None:
        settings = self.task.settings
        self.history["loss"].append(loss)
        self.history["val_loss"].append(valid_loss)
        self.history["val_uar"].append(valid_uar)
        weights = [np.asarray(w) for w in self.network.get_weights()]
        if valid_loss < self.best_loss:
            self.best_loss, self.best, self.epochs_since_best = valid_loss, weights, 0
        else:
            self.epochs_since_best += 1
        if settings.average_epochs:
            self.last = [*self.last, weights][-settings.average_epochs :]
        if (
            settings.schedule == "plateau"
            and self.epochs_since_best
            and self.epochs_since_best % settings.plateau_patience == 0
        ):
            self.network.optimizer.learning_rate = float(self.network.optimizer.learning_rate.numpy()) / 2

    def save(self, path: Path) -> None:
        """Write the whole state beside ``path`` and move it there: plain arrays, no pickles."""
        arrays = {f"variable/{k:04d}": np.asarray(v) for k, v in enumerate(self._variables())}
        arrays |= {f"best/{k:04d}": w for k, w in enumerate(self.best)} | {"mean": self.mean, "std": self.std}
        arrays |= {f"last/{e:04d}/{k:04d}": w for e, each in enumerate(self.last) for k, w in enumerate(each)}
        about = {
            "epoch": self.epoch,
            "best_loss": self.best_loss,
            "epochs_since_best": self.epochs_since_best,
            "history": self.history,
            "last": len(self.last),
        }
        beside = path.with_suffix(".part.npz")
        np.savez(beside, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]  # as in bundle.py
        beside.replace(path)

    def load(self, path: Path) -> None:
        """Take up a state that ``save`` wrote."""
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            for k, variable in enumerate(self._variables()):
                variable.assign(file[f"variable/{k:04d}"])
            self.mean, self.std = file["mean"], file["std"]
            self.best = [file[name] for name in sorted(file.files) if name.startswith("best/")]
            self.last = [
                [file[name] for name in sorted(file.files) if name.startswith(f"last/{e:04d}/")]
                for e in range(about["last"])
            ]
        self.epoch, self.best_loss = about["epoch"], about["best_loss"]
        self.epochs_since_best, self.history = about["epochs_since_best"], about["history"]

    def _variables(self) -> list[Any]:
        """All that training changes: weights, the dropouts' seeds, and the optimizer's moments and step."""
        seeds = [v for v in self.network.non_trainable_variables if "seed" in v.path]
        return [*self.network.weights, *seeds, *self.network.optimizer.variables]

    def finish(self) -> Fitted:
        """Pick the best weights, round them and calibrate them on the validation examples."""
        if self.last:
            self.network.set_weights([np.mean(each, axis=0) for each in zip(*self.last, strict=True)])
            self._settle_norms()
        if not self.last or self._judged()[0] > self.best_loss:
            self.network.set_weights(self.best)
        self.network.set_weights([rounded(np.asarray(w, np.float32)) for w in self.network.get_weights()])
        logits, targets = self._validate()
        truth = targets.argmax(axis=-1)
        chances = None
        if self.examples.draws is not None:  # the windows of a clip follow one another
            chances = self.examples.draws.chances(self.task.valid).repeat(len(truth) // len(self.task.valid))
        temperature, offsets = calibrate(logits, truth, chances, with_offsets=self.task.settings.label_offsets)
        # (z + o·T) / T = z / T + o: the offsets become part of the last layer's bias.
        bias = self.network.get_layer("logits").bias
        bias.assign_add((offsets * temperature).astype(np.float32))
        weights = [np.asarray(w, np.float32) for w in self.network.get_weights()]
        return Fitted(weights, self.mean, self.std, temperature, self.history, mean_recall(logits, truth))


def _moments_before(norm: Any, network: keras.Model) -> keras.Model:
    """What reaches a batch norm of ``network``, as one that shares its layers: (B, T, F) → means and mean squares of
    the C channels, float32 (2, C).
    """
    from keras import Model, ops

    x = ops.cast(norm.input, "float32")
    axes = tuple(range(x.ndim - 1))
    return Model(network.input, ops.stack([ops.mean(x, axes), ops.mean(ops.square(x), axes)]))


def mean_recall(logits: FloatArray, truth: IntArray) -> float:
    """UAR: the mean, over the labels that occur in ``truth`` int (n, ...), of the part of each that is found."""
    size = logits.shape[-1]
    flat, said = truth.reshape(-1), logits.reshape(-1, size).argmax(axis=1)
    counts = np.bincount(flat, minlength=size)
    right = np.bincount(flat[said == flat], minlength=size)
    return float((right[counts > 0] / counts[counts > 0]).mean())


def rounded(weights: FloatArray) -> FloatArray:
    """Round float32 to 11 bits of mantissa (1 part in 4,096): no score changes, and bundles need half the bytes."""
    bits = np.ascontiguousarray(weights).view(np.uint32)
    return ((bits + np.uint32(0x800)) & np.uint32(0xFFFFF000)).view(np.float32)


def calibrate(
    logits: FloatArray,
    truth: IntArray,
    weights: npt.NDArray[np.float64] | None = None,
    *,
    with_offsets: bool = True,
) -> tuple[float, FloatArray]:
    """Find the temperature and the offset of each label that make held-out truth likeliest.

    Bias-corrected temperature scaling (Alexandari et al. 2020), then the temperature alone once more. For the offsets,
    examples count as training draws them, by ``weights``, and without weights every label the same, however many
    examples it has: training windows and whole recordings are not alike, and a label would be said too often or too
    seldom. For the temperature, each example counts the same: it is to be right on what there is, and
    a small corpus that its few speakers make hard would else make a model doubt itself on all others. The temperature
    lies within 0.3 to 5. Without offsets, and for chunks (logits of three axes), there is a temperature alone.

    Parameters
    ----------
    logits : float32 (n, L) or (n, chunks, L)
    truth : int (n,) or (n, chunks)
    weights : float (n,), such as ``Draws.chances``, or None: every label the same

    Returns
    -------
    temperature : float
    offsets : float32 (L,), to be added to logits / temperature
    """
    import scipy.optimize

    size = logits.shape[-1]
    flat, rows = logits.reshape(-1, size).astype(np.float64), truth.reshape(-1)
    counts = np.bincount(rows, minlength=size)
    with_offsets = with_offsets and logits.ndim == 2
    even = np.full(len(rows), 1 / len(rows))
    bounds = (np.log(0.3), np.log(5.0))

    def loss(log_temperature: float, offsets: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
        scores = flat / np.exp(log_temperature) + offsets
        scores = scores - scores.max(axis=1, keepdims=True)
        likely = scores[np.arange(len(rows)), rows] - np.log(np.exp(scores).sum(axis=1))
        return float(-(weights * likely).sum() + 1e-3 * np.square(offsets).sum())

    bias = np.zeros(size)  # of the logits
    if with_offsets:
        if weights is None:
            weights = 1 / counts[rows]
        weights = weights / weights.sum()
        # Nothing can be said of a label without examples: its offset stays 0.
        offset_bounds = [(-3.0, 3.0) if count else (0.0, 0.0) for count in counts]
        found = scipy.optimize.minimize(
            lambda at: loss(at[0], at[1:], weights), np.zeros(1 + size), method="L-BFGS-B",
            bounds=[bounds, *offset_bounds],
        ).x  # fmt: skip
        bias = found[1:] * np.exp(found[0])
        flat = flat + bias
    alone = scipy.optimize.minimize_scalar(
        loss, bounds=bounds, args=(np.zeros(size), even), method="bounded", options={"xatol": 1e-4}
    )
    temperature = float(np.exp(alone.x))
    return temperature, (bias / temperature).astype(np.float32)


def draw_order(rng: np.random.Generator, rows: IntArray, draws: Draws | None) -> IntArray:
    """One epoch's examples: every row once in a new order, or as many draws as there are rows, as ``draws`` has it."""
    if draws is None:
        return rng.permutation(rows)
    return rng.choice(rows, len(rows), p=draws.chances(rows))
