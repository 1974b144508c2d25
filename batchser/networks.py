"""The networks, built in code: a bundle carries weights only, so that no bundle can carry a program.

``build(name, ...)`` looks a builder up in NETWORKS. Outputs are logits: softmax and temperature belong to scoring.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from batchser.errors import ConfigError
from batchser.settings import NUM_PITCHES

if TYPE_CHECKING:
    import keras


def build(name: str, num_frames: int, num_features: int, num_outputs: int, options: Mapping[str, Any]) -> keras.Model:
    """Build a network of NETWORKS for inputs (B, num_frames, num_features).

    Raises
    ------
    ConfigError : unknown name, or options that the builder does not take
    """
    with refusing(name, num_frames, num_features):
        return NETWORKS[name](num_frames, num_features, num_outputs, **options_of(name, options))


@contextlib.contextmanager
def refusing(name: str, num_frames: int, num_features: int) -> Iterator[None]:
    """Tell what a network's builder raises as a fault of its options.

    Raises
    ------
    ConfigError : the name is unknown, or the options are wrong
    """
    if name not in NETWORKS:
        raise ConfigError(f"network: received {name!r}, expected one of {', '.join(sorted(NETWORKS))}")
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"network {name!r} does not take these options for {num_frames} steps of {num_features}: {error}"
        ) from error


def options_of(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a network of NETWORKS: those given, the others at their defaults.

    Raises
    ------
    TypeError : an option that the builder does not take
    """
    parameters = inspect.signature(NETWORKS[name]).parameters.values()
    defaults = {option.name: option.default for option in parameters if option.kind is option.KEYWORD_ONLY}
    if unknown := sorted(set(options) - set(defaults)):
        raise TypeError(f"received {', '.join(unknown)}, expected any of {', '.join(defaults)}")
    return {**defaults, **options}


def conv_dual_lstm(
    num_frames: int,
    num_features: int,
    num_outputs: int,
    *,
    filters: Sequence[int] = (24, 32, 48),
    units: Sequence[int] = (64, 64),
    skip: int = 128,
    dropout: float = 0.3,
    own_means: bool = False,
    pitch_filters: Sequence[int] = (),
    num_pitches: int = NUM_PITCHES,
) -> keras.Model:
    """Strided convolutions over time and frequency, two bidirectional LSTMs, attention pooling over all of them.

    (B, T, F) → Conv2D 3×3 of stride 2, BatchNorm, ReLU for each of ``filters`` → (B, T/8, F/8 · filters)
    → BiLSTM for each of ``units``; attention weighs the moments of what the convolutions (through ``skip`` units) and
    both LSTMs say, so that gradients reach each of them directly → Dropout → logits (B, num_outputs).

    With ``own_means`` each band is taken relative to its own mean over the window first, frames weighted by how much
    there is in them (softmax of their mean): what a line or a voice's colour adds throughout is not heard then.

    With ``pitch_filters`` the last ``num_pitches`` features are pitches, over which go convolutions of their own, of so
    many filters; the LSTMs read what both find.

    Raises
    ------
    ValueError : not as many ``pitch_filters`` as ``filters``, or no features besides the pitches
    """
    from keras import Input, Model, layers, ops

    num_bands = num_bands_of(num_features, filters, pitch_filters, num_pitches)
    inputs = Input((num_frames, num_features), name="features")
    bands = inputs[:, :, :num_bands] if pitch_filters else inputs
    if own_means:
        loud = ops.softmax(ops.mean(bands, axis=2, keepdims=True), axis=1)  # (B, T, 1)
        bands -= ops.sum(loud * bands, axis=1, keepdims=True)
    seen = []
    images = [("", bands, filters)] + ([("pitch_", inputs[:, :, num_bands:], pitch_filters)] if pitch_filters else [])
    for prefix, image, widths in images:
        x = layers.Reshape((num_frames, image.shape[2], 1))(image)
        for k, width in enumerate(widths):
            x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False, name=f"{prefix}conv_{k}")(x)
            x = layers.BatchNormalization(name=f"{prefix}norm_{k}")(x)
            x = layers.ReLU()(x)
        seen.append(layers.Reshape((x.shape[1], x.shape[2] * x.shape[3]))(x))  # (B, T/8, its features/8 · filters)
    x = layers.Concatenate()(seen) if pitch_filters else seen[0]
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


def num_bands_of(num_features: int, filters: Sequence[int], pitch_filters: Sequence[int], num_pitches: int) -> int:
    """How many of the features are bands; the rest are pitches, where those have convolutions of their own.

    Raises
    ------
    ValueError : not as many ``pitch_filters`` as ``filters``, or no features besides the pitches
    """
    if not pitch_filters:
        return num_features
    if not 1 <= num_pitches < num_features:
        raise ValueError(f"num_pitches: received {num_pitches}, expected 1 to {num_features - 1}, some of the features")
    if len(pitch_filters) != len(filters):
        raise ValueError(f"pitch_filters: received {list(pitch_filters)}, expected one for each of {list(filters)}")
    return num_features - num_pitches


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


def lstm_stack(
    num_frames: int,
    num_features: int,
    num_outputs: int,
    *,
    across: bool = False,
    units: Sequence[int] = (256, 128),
    dropouts: Sequence[float] | float = 0.4,
    batch_norm: bool = True,
    bidirectional: bool = False,
    flatten: bool = False,
    dense: Sequence[int] = (256,),
    dense_dropout: float = 0.5,
) -> keras.Model:
    """LSTMs one upon another, as in papers 000, 001 and 002: (B, T, F) → logits (B, num_outputs).

    Each LSTM but the last gives its whole sequence, then BatchNorm where asked for, and ``dropouts`` of its own (one
    number: of all but the last); the last one its last state, or, with ``flatten``, its sequence as one vector. Dense
    layers with ReLU follow. With ``across`` the sequence is that of the features, not of the steps. The defaults are
    paper 000's 256/128.

    Raises
    ------
    ValueError : not one dropout for each LSTM
    """
    from keras import Input, Model, layers

    if isinstance(dropouts, int | float):
        dropouts = [*[dropouts] * (len(units) - 1), 0.0]
    if len(units) != len(dropouts):
        raise ValueError(f"dropouts: received {list(dropouts)}, expected one for each of units {list(units)}")
    inputs = Input((num_frames, num_features), name="features")
    x = layers.Permute((2, 1))(inputs) if across else inputs
    for k, (width, dropout) in enumerate(zip(units, dropouts, strict=True)):
        last = k + 1 == len(units)
        lstm = layers.LSTM(width, return_sequences=flatten or not last, name=f"lstm_{k}")
        x = (layers.Bidirectional(lstm, name=f"lstm_{k}") if bidirectional else lstm)(x)
        if batch_norm and not last:
            x = layers.BatchNormalization(name=f"norm_{k}")(x)
        x = layers.Dropout(dropout)(x)
    if flatten:
        x = layers.Flatten()(x)
    for k, width in enumerate(dense):
        x = layers.Dense(width, activation="relu", name=f"dense_{k}")(x)
        x = layers.Dropout(dense_dropout)(x)
    return Model(inputs, layers.Dense(num_outputs, name="logits", dtype="float32")(x), name="lstm_stack")


def conv1d_lstm(
    num_frames: int,
    num_features: int,
    num_outputs: int,
    *,
    filters: Sequence[int] = (64, 128, 256),
    kernels: Sequence[int] = (5, 5, 3),
    units: Sequence[int] = (128, 64),
    dense: Sequence[int] = (128, 64),
) -> keras.Model:
    """Paper 003's pseudocode: convolutions along the statistics, two LSTMs, two dense layers.

    (B, 1, F) → (B, F, 1), the statistics as a sequence → [Conv1D, MaxPool 2, BatchNorm, Dropout 0.3 from the second on]
    → LSTM, Dropout 0.4 for each of ``units`` → Dense, BatchNorm, Dropout 0.5 → Dense, Dropout 0.3 → logits.
    """
    from keras import Input, Model, layers

    inputs = Input((num_frames, num_features), name="features")
    x = layers.Permute((2, 1))(inputs)
    for k, (width, kernel) in enumerate(zip(filters, kernels, strict=True)):
        x = layers.Conv1D(width, kernel, activation="relu", name=f"conv_{k}")(x)
        x = layers.BatchNormalization(name=f"norm_{k}")(layers.MaxPooling1D(2)(x))
        x = layers.Dropout(0.3)(x) if k else x
    for k, width in enumerate(units):
        x = layers.LSTM(width, return_sequences=k + 1 < len(units), name=f"lstm_{k}")(x)
        x = layers.Dropout(0.4)(x)
    for k, width in enumerate(dense):
        x = layers.Dense(width, activation="relu", name=f"dense_{k}")(x)
        x = layers.BatchNormalization(name="norm_dense")(x) if k == 0 else x
        x = layers.Dropout(0.3 if k else 0.5)(x)
    return Model(inputs, layers.Dense(num_outputs, name="logits", dtype="float32")(x), name="conv1d_lstm")


def dense_stack(
    num_frames: int,
    num_features: int,
    num_outputs: int,
    *,
    units: Sequence[int] = (256, 128, 64),
    dropout: float = 0.4,
) -> keras.Model:
    """The dense network that paper 003 trained: all statistics as one vector (B, T · F) → logits (B, num_outputs).

    Dense with ReLU, BatchNorm and Dropout for each of ``units`` but the last, which is a Dense alone.
    """
    from keras import Input, Model, layers

    inputs = Input((num_frames, num_features), name="features")
    x = layers.Flatten()(inputs)
    for k, width in enumerate(units):
        x = layers.Dense(width, activation="relu", name=f"dense_{k}")(x)
        if k + 1 < len(units):
            x = layers.Dropout(dropout)(layers.BatchNormalization(name=f"norm_{k}")(x))
    return Model(inputs, layers.Dense(num_outputs, name="logits", dtype="float32")(x), name="dense_stack")


def conv2d_lstm(
    num_frames: int,
    num_features: int,
    num_outputs: int,
    *,
    chunk_frames: int = 128,
    chunk_hop: int = 64,
    filters: Sequence[int] = (16, 32, 64, 128),
    pools: Sequence[int] = (2, 4, 4, 4),
    units: int = 64,
    dropout: float = 0.4,
    lstm_dropout: float = 0.3,
) -> keras.Model:
    """Paper 004: the same four 2D convolutions over each of the overlapping chunks of a spectrogram, then an LSTM.

    (B, T, F) → (B, chunks, chunk_frames, F) → [Conv2D 3×3, BatchNorm, ReLU, MaxPool, Dropout] → (B, chunks, ·) → LSTM
    → Dropout → logits (B, num_outputs). Seven chunks of 128 × 128 for 3 s at 48 kHz with a hop of 256. The paper's
    table misprints block 3 as having 64 inputs: it has what block 2 gives, 32.
    """
    from keras import Input, Model, layers, ops

    inputs = Input((num_frames, num_features), name="features")
    starts = range(0, num_frames - chunk_frames + 1, chunk_hop)
    if not starts:
        raise ValueError(f"chunk_frames: received {chunk_frames}, expected at most the window's {num_frames} frames")
    x = ops.stack([inputs[:, start : start + chunk_frames] for start in starts], axis=1)
    x = ops.reshape(x, (-1, chunk_frames, num_features, 1))  # time-distributed: each chunk is an example of its own
    for k, (width, pool) in enumerate(zip(filters, pools, strict=True)):
        x = layers.Conv2D(width, 3, padding="same", name=f"conv_{k}")(x)
        x = layers.ReLU()(_image_norm()(name=f"norm_{k}")(x))
        x = layers.Dropout(dropout)(layers.MaxPooling2D(pool)(x))
    x = layers.Reshape((len(starts), -1))(ops.reshape(x, (-1, len(starts) * x.shape[1] * x.shape[2] * x.shape[3])))
    x = layers.Dropout(lstm_dropout)(layers.LSTM(units, name="lstm")(x))
    return Model(inputs, layers.Dense(num_outputs, name="logits", dtype="float32")(x), name="conv2d_lstm")


@functools.cache
def _image_norm() -> type[keras.layers.BatchNormalization]:
    """Keras's batch norm, for large images (B, H, W, C): TensorFlow has one operation for training it.

    Keras makes it of many, each of which reads and writes the images: on a CPU that takes 4 times as long, and was 40 %
    of ``conv2d_lstm``'s training step.
    """
    import tensorflow as tf
    from keras import layers, ops

    class ImageNormalization(layers.BatchNormalization):  # type: ignore[misc]  # Keras has no types
        def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
            if not training:
                return super().call(inputs, training, mask)
            scale, shift = ops.cast(self.gamma, "float32"), ops.cast(self.beta, "float32")
            outputs, *found = tf.compat.v1.nn.fused_batch_norm(inputs, scale, shift, epsilon=self.epsilon)
            for moving, now in zip((self.moving_mean, self.moving_variance), found, strict=True):
                moving.assign(moving * self.momentum + now * (1 - self.momentum))
            return outputs

    return ImageNormalization


def batch_norms(network: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The batch norms of a network, each after those that it hears."""
    from keras import layers

    return [layer for layer in network.layers if isinstance(layer, layers.BatchNormalization)]


def _unrolled(layer: keras.layers.Layer) -> keras.layers.Layer:
    """The same layer, an LSTM with a graph node a step."""
    config = layer.get_config()
    if type(layer).__name__ == "LSTM":
        config["unroll"] = True
    elif type(layer).__name__ == "Bidirectional":
        for direction in ("layer", "backward_layer"):
            config[direction]["config"]["unroll"] = True
    return type(layer).from_config(config)


def flops(network: keras.Model) -> int:
    """Floating-point operations to score one window, a multiplication and its addition being two.

    TensorFlow's profiler counts them in the graph that scores, LSTMs unrolled: it looks at a loop's body once.
    """
    import keras
    import tensorflow as tf

    network = keras.models.clone_model(network, clone_function=_unrolled)
    window = tf.TensorSpec((1, *network.input_shape[1:]), tf.float32)
    graph = tf.function(lambda x: network(x, training=False)).get_concrete_function(window).graph
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = builder(builder.float_operation()).with_empty_output().build()
    return int(tf.compat.v1.profiler.profile(graph, options=options).total_float_ops)


NETWORKS: Final[Mapping[str, Callable[..., keras.Model]]] = {
    "conv-dual-lstm": conv_dual_lstm,
    "gate-conv": gate_conv,
    "lstm-stack": lstm_stack,
    "conv1d-lstm": conv1d_lstm,
    "dense-stack": dense_stack,
    "conv2d-lstm": conv2d_lstm,
}
