"""The networks, built in code: a bundle carries weights only, so that no bundle can carry a program.

``build(name, ...)`` looks a builder up in NETWORKS. Outputs are logits: softmax and temperature belong to scoring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from batchser.errors import ConfigError

if TYPE_CHECKING:
    import keras


def build(name: str, num_frames: int, num_features: int, num_outputs: int, options: Mapping[str, Any]) -> keras.Model:
    """Build a network of NETWORKS for inputs (B, num_frames, num_features).

    Raises
    ------
    ConfigError : unknown name, or options that the builder does not take
    """
    if name not in NETWORKS:
        raise ConfigError(f"network: received {name!r}, expected one of {', '.join(sorted(NETWORKS))}")
    try:
        return NETWORKS[name](num_frames, num_features, num_outputs, **options)
    except TypeError as error:
        raise ConfigError(f"network {name!r} does not take these options: {error}") from error


def conv_dual_lstm(
    num_frames: int,
    num_features: int,
    num_outputs: int,
    *,
    filters: Sequence[int] = (24, 32, 48),
    units: Sequence[int] = (64, 64),
    skip: int = 128,
    dropout: float = 0.3,
) -> keras.Model:
    """Strided convolutions over time and frequency, two bidirectional LSTMs, attention pooling over all of them.

    (B, T, F) → Conv2D 3×3 of stride 2, BatchNorm, ReLU for each of ``filters`` → (B, T/8, F/8 · filters)
    → BiLSTM for each of ``units``; attention weighs the moments of what the convolutions (through ``skip`` units) and
    both LSTMs say, so that gradients reach each of them directly → Dropout → logits (B, num_outputs).
    """
    from keras import Input, Model, layers

    x = inputs = Input((num_frames, num_features), name="features")
    x = layers.Reshape((num_frames, num_features, 1))(x)
    for k, width in enumerate(filters):
        x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False, name=f"conv_{k}")(x)
        x = layers.BatchNormalization(name=f"norm_{k}")(x)
        x = layers.ReLU()(x)
    x = layers.Reshape((x.shape[1], x.shape[2] * x.shape[3]))(x)  # (B, T/8, F/8 · filters)
    levels = [layers.Dense(skip, activation="relu", name="skip")(x)]
    x = layers.Dropout(dropout)(x)
    for k, width in enumerate(units):
        # Unrolled: the sequence is short (23 steps), and a loop in the graph costs twice the time on a CPU.
        lstm = layers.LSTM(width, return_sequences=True, unroll=True)
        x = layers.Bidirectional(lstm, name=f"lstm_{k}")(x)
        levels.append(x)
        x = layers.Dropout(dropout)(x)
    moments = layers.Concatenate()(levels)  # (B, T/8, skip + 2 · units)
    weights = layers.Softmax(axis=1)(layers.Dense(1, name="attention")(moments))  # (B, T/8, 1)
    pooled = layers.Flatten()(layers.Dot(axes=1)([weights, moments]))
    pooled = layers.Dropout(dropout)(pooled)
    return Model(inputs, layers.Dense(num_outputs, name="logits", dtype="float32")(pooled), name="conv_dual_lstm")


def gate_conv(
    num_frames: int,
    num_features: int,
    num_outputs: int,
    *,
    filters: Sequence[int] = (32, 48, 48, 48),
    kernel: int = 5,
) -> keras.Model:
    """Temporal convolutions that judge each chunk of four frames: (B, T, F) → logits (B, T/4, num_outputs)."""
    from keras import Input, Model, layers

    x = inputs = Input((num_frames, num_features), name="levels")
    for k, width in enumerate(filters):
        strided = k < 2  # two halvings: chunks of four frames; then dilation widens the view to most of the window
        x = layers.Conv1D(
            width, kernel, strides=2 if strided else 1, dilation_rate=1 if strided else 2 ** (k - 1), padding="same",
            activation="relu", name=f"conv_{k}",
        )(x)  # fmt: skip
    return Model(inputs, layers.Conv1D(num_outputs, 1, name="logits", dtype="float32")(x), name="gate_conv")


def flops(network: keras.Model) -> int:
    """Floating-point operations to score one window, a multiplication and its addition being two.

    TensorFlow's profiler counts them in the very graph that scores.
    """
    import tensorflow as tf

    window = tf.TensorSpec((1, *network.input_shape[1:]), tf.float32)
    graph = tf.function(lambda x: network(x, training=False)).get_concrete_function(window).graph
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = builder(builder.float_operation()).with_empty_output().build()
    return int(tf.compat.v1.profiler.profile(graph, options=options).total_float_ops)


NETWORKS: Final[Mapping[str, Callable[..., keras.Model]]] = {
    "conv-dual-lstm": conv_dual_lstm,
    "gate-conv": gate_conv,
}
