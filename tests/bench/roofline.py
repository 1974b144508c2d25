"""How near our stages are to their own arithmetic: the same matrix products and transforms with nothing around them.

``scoring_ms`` is what the engine needs for the products of the network's layers at their shapes; ``features_ms`` what
the FFT and the matrices of mel and pitch need. Both in milliseconds a window, one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import scipy.fft

from batchser import engine
from batchser.bundle import Bundle, read_weights, weights_of
from batchser.features.frames import _CHUNK_WINDOWS as _WINDOWS
from batchser.features.frames import _matrices

if TYPE_CHECKING:
    import openvino as ov

_REPEATS: Final = 30


@dataclass(frozen=True, slots=True)
class Roofline:
    """Milliseconds a window that the arithmetic alone takes."""

    scoring_ms: float
    features_ms: float


def measure_roofline(bundle: Bundle) -> Roofline | None:
    """Time the products of a bundle's emotion network, and the transforms of its features.

    None for networks that only TensorFlow runs, and for features other than mel and pitch.
    """
    if not engine.is_described(bundle.network) or not set(bundle.features.names) <= {"mel", "pitch"}:
        return None
    features = bundle.features
    shape = (features.num_steps, features.num_features)
    graph = engine.describe(
        bundle.network, weights_of(read_weights(bundle), "emotion"), "emotion", shape, len(bundle.labels)
    )
    products = [_Product(*sizes) for sizes in _products(graph)]
    return Roofline(sum(p.seconds() for p in products) * 1000 / engine.SLICE_WINDOWS, _features_ms(bundle))


def _products(graph: ov.Model) -> Iterator[tuple[int, int, int, int]]:
    """The matrix products (rows, inner, columns) of a graph's layers, and how many follow upon each other."""
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        shapes = [tuple(source.get_shape()) for source in node.inputs() if source.get_partial_shape().is_static]
        if kind == "Convolution":
            (rows, _, *_), (columns, *kernel) = shapes[0], shapes[1]
            yield rows * prod(node.output(0).get_shape()[2:]), prod(kernel), columns, 1
        elif kind == "MatMul":
            *rows, inner = shapes[0]
            yield prod(rows), inner, shapes[1][-1], 1
        elif kind == "LSTMSequence":
            (windows, steps, inner), (directions, columns, units) = shapes[0], shapes[5]
            yield windows * steps, inner, directions * columns, 1
            for _ in range(directions):
                yield windows, units, columns, steps  # a state is needed for the next


class _Product:
    """(rows, inner) × (inner, columns) as the engine multiplies it, ``steps`` times, each upon the last."""

    def __init__(self, rows: int, inner: int, columns: int, steps: int) -> None:
        import openvino as ov
        from openvino import opset13 as ops

        rng = np.random.default_rng(0)
        weights = (rng.standard_normal((inner, columns)) / inner).astype(np.float32)
        left = ops.parameter([rows, inner], np.float32)
        x: Any = left
        for _ in range(steps):
            x = ops.matmul(x, weights, False, False)
            if steps > 1:  # a state is as wide as what it is multiplied with
                x = ops.variadic_split(x, 1, [inner, columns - inner]).output(0)
        settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
        compiled = ov.Core().compile_model(ov.Model([x], [left], "product"), "CPU", settings)
        self._request = compiled.create_infer_request()
        self._request.set_input_tensor(ov.Tensor(rng.standard_normal((rows, inner)).astype(np.float32)))

    def seconds(self) -> float:
        return _quickest(self._request.infer)


def _features_ms(bundle: Bundle) -> float:
    """The FFT of frames that are cut and tapered, and the matrix of mel; of half of the windows that of pitch, too.

    That is what a two-party call takes of whose channels one is scored.
    """
    settings = bundle.features
    matrices = _matrices(settings)
    frames = np.random.default_rng(0).standard_normal((_WINDOWS, settings.num_frames, settings.fft_samples))
    frames = frames.astype(np.float32)
    power = np.square(np.abs(scipy.fft.rfft(frames, axis=2)))
    seconds = _quickest(lambda: scipy.fft.rfft(frames, axis=2))
    seconds += sum(_quickest(lambda bins=bins, bands=bands: power[:, :, bins] @ bands) for bins, bands in matrices.mel)
    if "pitch" in settings.names:
        heard = np.ascontiguousarray(power[:, :, : len(matrices.pitch)])
        seconds += _quickest(lambda: heard @ matrices.pitch) / 2
    return seconds * 1000 / _WINDOWS


def _quickest(work: Callable[[], Any]) -> float:
    times = [time.perf_counter()]
    for _ in range(_REPEATS):
        work()
        times.append(time.perf_counter())
    return min(end - start for start, end in pairwise(times))
