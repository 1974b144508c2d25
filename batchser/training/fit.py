"""Fitting: training windows → weights. Everything random comes from one seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from batchser import networks
from batchser.bundle import NetworkSpec
from batchser.records import FloatArray, IntArray
from batchser.scoring import inference, softmax
from batchser.training.recipe import FitSettings

if TYPE_CHECKING:
    import keras

Report = Callable[[str], None]
_MASKS: Final = 2  # SpecAugment masks of each kind
_WARM_UP_STEPS: Final = 200
_INFERENCE_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class Examples:
    """Training windows ready for a network.

    ``inputs`` is float16 (n, copies, T, F): the copies of an example are drawn from in turn, one an epoch.
    ``targets`` is int (n,) for one label a window, or (n, copies, chunks) for one label a chunk.
    """

    inputs: npt.NDArray[np.float16]
    targets: IntArray

    def take(self, rows: IntArray) -> Examples:
        """Keep some examples only."""
        return Examples(self.inputs[rows], self.targets[rows])


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted network's weights, in Keras's order, its temperature, and its curves."""

    weights: list[FloatArray]
    temperature: float
    history: dict[str, list[float]]


def fit(
    train: Examples,
    valid: Examples,
    spec: NetworkSpec,
    num_outputs: int,
    settings: FitSettings,
    seed: int,
    report: Report,
) -> Fitted:
    """Fit a network with early stopping, then its temperature on the validation examples (Guo et al. 2017).

    Parameters
    ----------
    train, valid : early stopping and temperature look at ``valid``; take other speakers for it where that matters
    spec, num_outputs : the network
    settings : the recipe's ``fit`` or ``gate_fit``
    seed : every random choice, initial weights included
    report : takes a line of progress an epoch

    Returns
    -------
    Fitted : the weights of the epoch with the lowest validation loss
    """
    import keras

    keras.utils.set_random_seed(seed)
    _, _, num_frames, num_features = train.inputs.shape
    network = networks.build(spec.name, num_frames, num_features, num_outputs, spec.options)
    batches = _batches(train, num_outputs, settings, seed)
    schedule = keras.optimizers.schedules.CosineDecay(
        1e-5,
        max(1, len(batches) * settings.epochs - _WARM_UP_STEPS),
        alpha=0.02,
        warmup_target=settings.learning_rate,
        warmup_steps=_WARM_UP_STEPS,
    )
    network.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=settings.weight_decay, clipnorm=1.0),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    inputs = np.ascontiguousarray(valid.inputs[:, 0], np.float32)
    targets = valid.targets if valid.targets.ndim == 1 else valid.targets[:, 0]
    stopper = keras.callbacks.EarlyStopping("val_loss", patience=settings.patience, restore_best_weights=True)
    history = network.fit(
        batches,
        validation_data=(inputs, np.eye(num_outputs, dtype=np.float32)[targets]),
        validation_batch_size=_INFERENCE_BATCH,
        epochs=settings.epochs,
        verbose=0,
        callbacks=[stopper, _reporter(settings.epochs, report)],
    )
    logits = predict(network, inputs)
    curves = {name: [float(value) for value in values] for name, values in history.history.items()}
    return Fitted([np.asarray(w) for w in network.get_weights()], fit_temperature(logits, targets), curves)


def predict(network: keras.Model, inputs: FloatArray) -> FloatArray:
    """Logits of many inputs, (n, T, F) → (n, …), in batches."""
    function = inference(network, *inputs.shape[1:])
    starts = range(0, len(inputs), _INFERENCE_BATCH)
    return np.concatenate([np.asarray(function(inputs[k : k + _INFERENCE_BATCH])) for k in starts])


def fit_temperature(logits: FloatArray, targets: IntArray) -> float:
    """Find the temperature that gives held-out examples their highest likelihood, by a search over 0.3 to 5."""
    flat, truth = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    rows = np.arange(len(truth))

    def loss(temperature: float) -> float:
        return float(-np.log(softmax(flat / np.float32(temperature))[rows, truth] + 1e-12).mean())

    return float(min(np.geomspace(0.3, 5.0, 141), key=loss))


def _reporter(epochs: int, report: Report) -> Any:
    import keras

    def tell(epoch: int, logs: dict[str, float]) -> None:
        report(f"epoch {epoch + 1}/{epochs}: loss {logs['loss']:.3f}, validation loss {logs['val_loss']:.3f}")

    return keras.callbacks.LambdaCallback(on_epoch_end=tell)


def _batches(train: Examples, num_outputs: int, settings: FitSettings, seed: int) -> Sequence[Any]:
    """Batches for Keras: a new order, new copies, masks and mixtures every epoch."""
    import keras

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras has no stubs
        def __init__(self) -> None:
            super().__init__()
            self._rng = np.random.default_rng([seed, 1])
            self.on_epoch_end()

        def __len__(self) -> int:
            return max(1, len(train.inputs) // settings.batch_size)

        def on_epoch_end(self) -> None:
            self._order = self._rng.permutation(len(train.inputs))

        def __getitem__(self, k: int) -> tuple[FloatArray, FloatArray]:
            rows = self._order[k * settings.batch_size : (k + 1) * settings.batch_size]
            copies = self._rng.integers(0, train.inputs.shape[1], len(rows))
            x = train.inputs[rows, copies].astype(np.float32)
            labels = train.targets[rows] if train.targets.ndim == 1 else train.targets[rows, copies]
            y = np.eye(num_outputs, dtype=np.float32)[labels]
            mask(self._rng, x, settings)
            if settings.mixup:
                x, y = mix(self._rng, x, y, settings.mixup)
            return x, y * (1 - settings.label_smoothing) + settings.label_smoothing / num_outputs

    batches: Sequence[Any] = Batches()
    return batches


def mask(rng: np.random.Generator, x: FloatArray, settings: FitSettings) -> None:
    """Set stripes of each (T, F) example of ``x`` (B, T, F) to 0, in place: SpecAugment (Park et al. 2019)."""
    num_frames, num_features = x.shape[1:]
    for example in x:
        for _ in range(_MASKS):
            width = int(rng.integers(0, settings.frequency_mask + 1))
            first = int(rng.integers(0, num_features - width + 1))
            example[:, first : first + width] = 0
            width = int(rng.integers(0, settings.time_mask + 1))
            first = int(rng.integers(0, num_frames - width + 1))
            example[first : first + width] = 0


def mix(rng: np.random.Generator, x: FloatArray, y: FloatArray, alpha: float) -> tuple[FloatArray, FloatArray]:
    """Blend each example with another one of the batch, inputs and targets alike: mixup (Zhang et al. 2018)."""
    order = rng.permutation(len(x))
    part = rng.beta(alpha, alpha, len(x)).astype(np.float32)
    part_x = part.reshape(-1, *[1] * (x.ndim - 1))
    part_y = part.reshape(-1, *[1] * (y.ndim - 1))
    return part_x * x + (1 - part_x) * x[order], part_y * y + (1 - part_y) * y[order]
