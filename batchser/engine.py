"""The shipped networks as OpenVINO runs them: true LSTM operators, and no TensorFlow in the process.

networks.py describes every network in Keras, which trains it and stays the reference. The two that bundles are shipped
with are described here a second time: the same weights give the same logits (tests/test_engine.py) in less time, and a
process that scores starts sooner and weighs less. Whatever is not described here scores in TensorFlow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from batchser.bundle import NetworkSpec
from batchser.errors import BundleError
from batchser.networks import num_bands_of, options_of, refusing
from batchser.records import FloatArray

if TYPE_CHECKING:
    import openvino as ov

#: A network takes always so many windows at once: its shapes are known when it is compiled, its activations stay in the
#: processor's cache, and no window's answer depends on how many others come with it.
SLICE_WINDOWS: Final = 16
_NORM_EPSILON: Final = 1e-3  # of Keras's BatchNormalization
#: Processes are Dask's to place: were each to tie itself to the first core, all would share it.
_SETTINGS: Final = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}


class Compiled:
    """A network that was described, ready to score: float32 (B, steps, features), any B → its logits.

    It works on ``num_threads`` cores; threads that call it take turns. Inputs are finite: of others it makes numbers.
    """

    def __init__(self, graph: ov.Model, num_threads: int) -> None:
        import openvino as ov

        settings = {**_SETTINGS, "INFERENCE_NUM_THREADS": num_threads}
        self._request = ov.Core().compile_model(graph, "CPU", settings).create_infer_request()
        self._slice = np.zeros(tuple(graph.input(0).shape), np.float32)
        self._request.set_input_tensor(ov.Tensor(self._slice, shared_memory=True))
        self._logits: FloatArray = self._request.get_output_tensor().data
        self._lock = threading.Lock()

    def __call__(self, inputs: FloatArray) -> FloatArray:
        """Score windows, a slice after another."""
        logits = np.empty((len(inputs), *self._logits.shape[1:]), np.float32)
        with self._lock:
            for start in range(0, len(inputs), SLICE_WINDOWS):
                part = inputs[start : start + SLICE_WINDOWS]
                self._slice[: len(part)] = part  # behind it lies what an earlier slice left: it is not looked at
                self._request.infer()
                logits[start : start + len(part)] = self._logits[: len(part)]
        return logits


def is_described(spec: NetworkSpec) -> bool:
    """Whether ``describe`` knows this network."""
    return spec.name in _GRAPHS


def describe(
    spec: NetworkSpec, arrays: Sequence[FloatArray], what: str, shape: tuple[int, int], num_outputs: int
) -> ov.Model:
    """The graph of a network for SLICE_WINDOWS windows of ``shape``, (steps, features).

    Parameters
    ----------
    spec : name and options of a network that ``is_described``
    arrays : its weights, in the order of Keras's ``weights``
    what : the weights' name in errors
    shape : steps and features of a window
    num_outputs : logits of a window, or of a chunk of one

    Raises
    ------
    BundleError : the weights do not fit the network
    ConfigError : options that the network does not take
    """
    import openvino as ov
    from openvino import opset13 as ops

    weights = _Weights(arrays, what)
    inputs = ops.parameter([SLICE_WINDOWS, *shape], np.float32)
    with refusing(spec.name, *shape):
        logits = _GRAPHS[spec.name](inputs, weights, num_outputs, options_of(spec.name, spec.options))
    weights.end()
    return ov.Model([logits], [inputs], spec.name)


# ------------------------------------------------------------------------------------------------------ the networks


def _conv_dual_lstm(inputs: ov.Node, weights: _Weights, num_outputs: int, options: Mapping[str, Any]) -> ov.Node:
    """``networks.conv_dual_lstm``: (b, T, F) → logits (b, num_outputs)."""
    from openvino import opset13 as ops

    filters, pitch_filters, units = options["filters"], options["pitch_filters"], options["units"]
    num_features = inputs.shape[2]
    num_bands = num_bands_of(num_features, filters, pitch_filters, options["num_pitches"])
    bands, pitches = ops.variadic_split(inputs, 2, [num_bands, num_features - num_bands]).outputs()
    if options["own_means"]:
        loud = ops.softmax(ops.reduce_mean(bands, 2, keep_dims=True), 1)  # (b, T, 1)
        bands = ops.subtract(bands, ops.reduce_sum(ops.multiply(loud, bands), 1, keep_dims=True))
    images = [ops.unsqueeze(bands, 1)] + [ops.unsqueeze(pitches, 1)] * bool(pitch_filters)  # (b, 1, T, ·)
    for widths in zip(filters, pitch_filters, strict=True) if pitch_filters else zip(filters, strict=True):
        # In Keras's order, all kernels of a depth come before its norms.
        kernels = [weights.take(3, 3, x.shape[1], width) for x, width in zip(images, widths, strict=True)]
        images = [
            ops.relu(_conv(x, *_with_norm(kernel, weights), stride=2))
            for x, kernel in zip(images, kernels, strict=True)
        ]  # (b, width, T/2, ·/2)
    # Channels last, then a step's bands and channels in one: (b, T/8, ·/8 · filters)
    steps = [ops.transpose(x, [0, 2, 3, 1]) for x in images]
    heard = ops.concat([ops.reshape(x, [*x.shape[:2], x.shape[2] * x.shape[3]], False) for x in steps], 2)

    # Keras's order goes by the distance from the logits: the skip is as near to them as the last LSTM.
    read = [heard.shape[2], *(2 * width for width in units)]
    cells = [_lstm_weights(weights, *sizes) for sizes in zip(read, units[:-1], strict=False)]
    skip = weights.take(read[0], options["skip"]), weights.take(options["skip"])
    cells += [_lstm_weights(weights, *sizes) for sizes in zip(read[-2:], units[-1:], strict=False)]
    levels = [ops.relu(_dense(heard, *skip))]
    x = heard
    for cell in cells:
        x = _bidirectional_lstm(x, *cell)
        levels.append(x)
    moments = ops.concat(levels, 2)  # (b, T/8, skip + 2 · units)
    width = moments.shape[2]
    attention = ops.softmax(_dense(moments, weights.take(width, 1), weights.take(1)), 1)  # (b, T/8, 1)
    pooled = ops.reduce_sum(ops.multiply(attention, moments), 1)
    return _dense(pooled, weights.take(width, num_outputs), weights.take(num_outputs))


def _gate_conv(inputs: ov.Node, weights: _Weights, num_outputs: int, options: Mapping[str, Any]) -> ov.Node:
    """``networks.gate_conv``: (b, T, F) → logits (b, T/4, num_outputs)."""
    from openvino import opset13 as ops

    x = ops.transpose(inputs, [0, 2, 1])
    for k, width in enumerate(options["filters"]):
        kernel, bias = weights.take(options["kernel"], x.shape[1], width), weights.take(width)
        strided = k < 2
        x = ops.relu(_conv(x, kernel, bias, stride=2 if strided else 1, dilation=1 if strided else 2 ** (k - 1)))
    x = _conv(x, weights.take(1, x.shape[1], num_outputs), weights.take(num_outputs))
    return ops.transpose(x, [0, 2, 1])


_GRAPHS: Final[Mapping[str, Callable[..., ov.Node]]] = {"conv-dual-lstm": _conv_dual_lstm, "gate-conv": _gate_conv}


# ------------------------------------------------------------------------------------------------- layers, weights


class _Weights:
    """A network's arrays, taken one after another, each of the shape that the network has there."""

    def __init__(self, arrays: Sequence[FloatArray], what: str) -> None:
        self._arrays, self._what, self._taken = arrays, what, 0

    def take(self, *shape: int) -> FloatArray:
        if self._taken == len(self._arrays) or self._arrays[self._taken].shape != shape:
            raise self._fault(f"{shape} as array {self._taken}")
        self._taken += 1
        return self._arrays[self._taken - 1]

    def end(self) -> None:
        if self._taken < len(self._arrays):
            raise self._fault(f"{self._taken} arrays")

    def _fault(self, expected: str) -> BundleError:
        received = [array.shape for array in self._arrays]
        return BundleError(f"weights {self._what!r}: received shapes {received}, the network expects {expected}")


def _conv(x: ov.Node, kernel: FloatArray, bias: FloatArray, *, stride: int = 1, dilation: int = 1) -> ov.Node:
    """Convolution and bias, padded as TensorFlow's "same": (b, in, …), kernel (…, in, out) → (b, out, …)."""
    from openvino import opset13 as ops

    num_axes = kernel.ndim - 2
    zeros = [0] * num_axes
    x = ops.convolution(
        x, np.ascontiguousarray(np.moveaxis(kernel, (-1, -2), (0, 1))), [stride] * num_axes, zeros, zeros,
        [dilation] * num_axes, auto_pad="same_upper",
    )  # fmt: skip
    return ops.add(x, bias.reshape(1, -1, *[1] * num_axes))


def _with_norm(kernel: FloatArray, weights: _Weights) -> tuple[FloatArray, FloatArray]:
    """A kernel (…, out) without bias and the batch norm behind it as one kernel and a bias (out,)."""
    width = kernel.shape[-1]
    gamma, beta, mean, variance = (weights.take(width).astype(np.float64) for _ in range(4))
    scale = gamma / np.sqrt(variance + _NORM_EPSILON)
    return (kernel * scale).astype(np.float32), (beta - mean * scale).astype(np.float32)


def _dense(x: ov.Node, kernel: FloatArray, bias: FloatArray) -> ov.Node:
    """(…, in) → (…, out)."""
    from openvino import opset13 as ops

    return ops.add(ops.matmul(x, kernel, False, False), bias)


def _lstm_weights(weights: _Weights, num_inputs: int, units: int) -> list[FloatArray]:
    """Kernels (2, 4 · units, ·) of inputs and of states, and biases (2, 4 · units), forwards and backwards.

    Keras has the gates in the order input, forget, cell, output, OpenVINO forget, input, cell, output.
    """
    shapes = ((num_inputs, 4 * units), (units, 4 * units), (4 * units,))
    directions = [[weights.take(*shape) for shape in shapes] for _ in range(2)]
    arrays = []
    for pair in zip(*directions, strict=True):
        inward, forget, cell, outward = np.split(np.stack(pair), 4, axis=-1)
        gates = np.concatenate([forget, inward, cell, outward], axis=-1)  # (2, ·, 4 · units) or (2, 4 · units)
        arrays.append(np.ascontiguousarray(gates.swapaxes(1, -1)))
    return arrays


def _bidirectional_lstm(x: ov.Node, kernel: FloatArray, recurrent: FloatArray, bias: FloatArray) -> ov.Node:
    """Both directions side by side: (b, T, in) → (b, T, 2 · units)."""
    from openvino import opset13 as ops

    num_windows, num_steps, _ = x.shape
    units = recurrent.shape[2]
    start = np.zeros((num_windows, 2, units), np.float32)
    lengths = np.full(num_windows, num_steps, np.int32)
    states = ops.lstm_sequence(x, start, start, lengths, kernel, recurrent, bias, units, "bidirectional").output(0)
    return ops.reshape(ops.transpose(states, [0, 2, 1, 3]), [num_windows, num_steps, 2 * units], False)
