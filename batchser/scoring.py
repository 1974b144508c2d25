"""Scoring: one loaded model a process, big batches gathered across recordings.

``Model`` runs a bundle's two networks, in OpenVINO (engine.py) or in TensorFlow; ``BatchScorer`` collects speech
windows until a batch is full.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from batchser import engine, networks
from batchser.bundle import Bundle, NetworkSpec, open_bundle, read_weights, weights_of
from batchser.errors import BundleError, ConfigError
from batchser.features import level_below_peak, log_mel, network_input
from batchser.records import KINDS, FloatArray, IntArray
from batchser.settings import AUTO_ENGINE, ENGINES

if TYPE_CHECKING:
    from collections.abc import Callable

    import keras

    Network = Callable[[FloatArray], Any]


#: A batch passes TensorFlow in slices of so many windows: as quick on a CPU as in one, and its activations stay small.
_SLICE_WINDOWS: Final = 64
#: A GPU wants many at once.
_GPU_SLICE_WINDOWS: Final = 1024
#: What a machine with a GPU shows before anything heavy is loaded: NVIDIA's devices, AMD's.
_GPU_DEVICES: Final = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd")


def start_tensorflow(num_threads: int) -> None:
    """Import TensorFlow quietly and pin its pools; without effect on the pools once TensorFlow has worked.

    A GPU is used where there is one, its memory taken as needed; its absence is not mentioned.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with _muted():
        import tensorflow as tf
    tf.get_logger().setLevel("ERROR")

    try:
        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        return  # TensorFlow is at work already (a test, a notebook): its pools stay as they are


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Throw away what native code writes to stderr meanwhile: TensorFlow logs before its log level counts."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def choose_engine(bundle: Bundle, wanted: str = AUTO_ENGINE) -> str:
    """Say what runs a bundle's networks: "openvino" or "tensorflow".

    ``auto``: TensorFlow on a GPU that it finds, and for networks that only it has; else OpenVINO, the quicker one on a
    processor. Both give the same probabilities within 1e-5.

    Raises
    ------
    ConfigError : ``wanted`` is no engine, or OpenVINO is not installed or does not have this bundle's networks
    """
    if wanted not in ENGINES:
        raise ConfigError(f"engine: received {wanted!r}, expected one of {', '.join(ENGINES)}")
    if wanted == "tensorflow":
        return wanted
    missing = [spec.name for spec in (bundle.network, bundle.gate_network) if not engine.is_described(spec)]
    installed = importlib.util.find_spec("openvino") is not None
    if wanted == AUTO_ENGINE:
        return "openvino" if installed and not missing and not num_gpus() else "tensorflow"
    if missing:
        raise ConfigError(f"engine: OpenVINO does not run {', '.join(missing)}, a network of {bundle.name}; say auto")
    if not installed:
        raise ConfigError("engine: OpenVINO is not installed; install openvino, or say auto")
    return wanted


@functools.cache
def num_gpus() -> int:
    """Count the GPUs that TensorFlow finds.

    Asked in a process of its own, and only where a device is in sight: if none can be used, nothing heavy has been
    loaded here.
    """
    if not any(Path(device).exists() for device in _GPU_DEVICES):
        return 0
    program = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return 0 if told.returncode else int(told.stdout.split()[-1])


class Model:
    """A bundle's two networks, ready to score. Make one a process with ``load_model``.

    ``arrays`` are the bundle's own weights unless given (a split's, a training run's); ``engine_name`` is one of
    ENGINES, ``num_threads`` how many cores it may use (TensorFlow that is at work already keeps its own).

    Raises
    ------
    BundleError : the weights do not fit the networks that the bundle names
    ConfigError : the bundle's networks do not take their options, or the engine does not have them
    """

    def __init__(
        self,
        bundle: Bundle,
        arrays: Mapping[str, FloatArray] | None = None,
        *,
        engine_name: str = AUTO_ENGINE,
        num_threads: int = 1,
    ) -> None:
        self.bundle = bundle
        self.engine = choose_engine(bundle, engine_name)
        if self.engine == "tensorflow":
            start_tensorflow(num_threads)
            _multiply_exactly()
        #: The fewest windows that are worth a call of the network.
        self.batch_windows = _GPU_SLICE_WINDOWS if self.engine == "tensorflow" and num_gpus() else 1
        arrays = read_weights(bundle) if arrays is None else arrays
        self._mean, self._std = _scaler(arrays, bundle.features.num_features)
        features = bundle.features

        def network(spec: NetworkSpec, prefix: str, shape: tuple[int, int], num_outputs: int) -> Network:
            if self.engine == "openvino":
                graph = engine.describe(spec, weights_of(arrays, prefix), prefix, shape, num_outputs)
                return engine.Compiled(graph, num_threads)
            slice_windows = max(_SLICE_WINDOWS, self.batch_windows)
            return _in_tensorflow(spec, arrays, prefix, shape, num_outputs, slice_windows)

        shape = (features.num_steps, features.num_features)
        self._emotion = network(bundle.network, "emotion", shape, len(bundle.labels))
        self._gate = network(bundle.gate_network, "gate", (features.num_frames, features.num_mels), len(KINDS))

    def gate(self, mel_db: FloatArray, num_frames: IntArray) -> FloatArray:
        """Probabilities of KINDS for each chunk: (B, T, num_mels), (B,) → float32 (B, num_chunks, len(KINDS))."""
        levels = level_below_peak(mel_db, num_frames, self.bundle.features.top_db)
        return softmax(self._gate(levels))

    def prepare(self, stack: FloatArray, num_frames: IntArray) -> FloatArray:
        """Make features what the emotion network takes, scaled: (B, T, F), (B,) → float32 (B, num_steps, F)."""
        scaled = network_input(stack, num_frames, self.bundle.features) - self._mean
        scaled /= self._std
        return np.asarray(scaled, np.float32)

    def emotions(self, prepared: FloatArray) -> FloatArray:
        """Calibrated probabilities of the labels: prepared features (B, T, F) → float32 (B, num_labels)."""
        return softmax(self._emotion(prepared) / np.float32(self.bundle.temperature))


def _multiply_exactly() -> None:
    """Keep a GPU from rounding float32 products to TF32, whose ten bits would show in a probability."""
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)


def _in_tensorflow(
    spec: NetworkSpec,
    arrays: Mapping[str, FloatArray],
    prefix: str,
    shape: tuple[int, int],
    num_outputs: int,
    slice_windows: int,
) -> Network:
    """A network of NETWORKS for inputs (B, *shape) with its weights, that takes them in slices of so many windows."""
    network = networks.build(spec.name, *shape, num_outputs, spec.options)
    network.set_weights(weights_of(arrays, prefix, [weight.shape for weight in network.weights]))
    judge = inference(network, *shape)

    def in_slices(inputs: FloatArray) -> FloatArray:
        starts = range(0, max(1, len(inputs)), slice_windows)
        return np.concatenate([np.asarray(judge(inputs[k : k + slice_windows])) for k in starts])

    return in_slices


def _scaler(arrays: Mapping[str, FloatArray], num_features: int) -> tuple[FloatArray, FloatArray]:
    try:
        mean, std = arrays["scaler/mean"], arrays["scaler/std"]
    except KeyError as error:
        raise BundleError(f"the weights lack {error}; train the bundle again") from error
    if mean.shape != (num_features,) or std.shape != (num_features,) or (std <= 0).any():
        raise BundleError(f"weights: the scaler has shape {mean.shape}, expected ({num_features},) with std > 0")
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise BundleError("weights: the scaler holds values that are not finite; train the bundle again")
    return mean, std


def inference(network: keras.Model, num_frames: int, num_features: int) -> Network:
    """Compile a network once for batches of any size: float32 (B, T, F) → its logits."""
    import tensorflow as tf

    signature = [tf.TensorSpec((None, num_frames, num_features), tf.float32)]
    function: Network = tf.function(lambda x: network(x, training=False), input_signature=signature)
    return function


def softmax(logits: FloatArray) -> FloatArray:
    """Softmax over the last axis, float32."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float32)


@functools.lru_cache(maxsize=2)
def load_model(folder: Path, sha256: str, num_threads: int = 1, engine_name: str = AUTO_ENGINE) -> Model:
    """Load a bundle once per process.

    Raises
    ------
    BundleError : the bundle in ``folder`` is not the one with this ``sha256``
    ConfigError : as ``Model``
    """
    bundle = open_bundle(folder)
    if bundle.sha256 != sha256:
        raise BundleError(f"{folder}: the bundle changed while the job ran (sha256 {bundle.sha256[:12]}…); start again")
    # What features need, filter banks and librosa for them, is loaded here: no recording's time limit pays for it.
    log_mel(np.zeros((1, bundle.features.window_samples), np.float32), bundle.features)
    return Model(bundle, engine_name=engine_name, num_threads=num_threads)


@dataclass(slots=True)
class _Waiting:
    """Windows whose probabilities go to ``target[rows]``."""

    prepared: FloatArray
    target: FloatArray
    rows: IntArray


class BatchScorer:
    """Collects windows across recordings and scores them ``batch_windows`` at a time.

    Results do not depend on how windows fall into batches beyond 1e-5.
    """

    def __init__(self, model: Model, batch_windows: int = 256) -> None:
        self.model = model
        self.batch_windows = max(batch_windows, model.batch_windows)
        self.num_submitted = 0
        self.num_scored = 0
        self._waiting: list[_Waiting] = []

    def submit(self, stack: FloatArray, num_frames: IntArray, target: FloatArray, rows: IntArray) -> int:
        """Queue windows; ``target[rows]``, float32 (·, num_labels), is filled once they are scored.

        Returns ``num_submitted``: the windows are scored when ``num_scored`` has reached it.
        """
        if len(rows):
            self._waiting.append(_Waiting(self.model.prepare(stack, num_frames), target, rows))
            self.num_submitted += len(rows)
            while self.num_submitted - self.num_scored >= self.batch_windows:
                self._score(self.batch_windows)
        return self.num_submitted

    def flush(self) -> None:
        """Score all that waits."""
        while self.num_submitted > self.num_scored:
            self._score(min(self.batch_windows, self.num_submitted - self.num_scored))

    def _score(self, count: int) -> None:
        """Score the ``count`` windows that have waited longest."""
        batch: list[_Waiting] = []
        missing = count
        while missing:
            head = self._waiting.pop(0)
            if len(head.rows) > missing:
                self._waiting.insert(0, _Waiting(head.prepared[missing:], head.target, head.rows[missing:]))
                head = _Waiting(head.prepared[:missing], head.target, head.rows[:missing])
            batch.append(head)
            missing -= len(head.rows)
        probabilities = self.model.emotions(np.concatenate([item.prepared for item in batch]))
        at = 0
        for item in batch:
            item.target[item.rows] = probabilities[at : at + len(item.rows)]
            at += len(item.rows)
        self.num_scored += count
