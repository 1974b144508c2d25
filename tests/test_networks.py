"""The networks: what they take and give, and what a window costs."""

import numpy as np
import pytest
import tensorflow as tf

from batchser import networks
from batchser.bundle import find_bundle
from batchser.errors import ConfigError

PAPER_MFLOP = 170  # the LSTMs of 256 and 128 units of paper 000 on its 130 frames


def test_flops_of_a_layer_are_those_counted_by_hand():
    from keras import Input, Model, layers

    inputs = Input((10, 4))
    assert networks.flops(Model(inputs, layers.Dense(3, use_bias=False)(inputs))) == 2 * 10 * 4 * 3


@pytest.mark.parametrize("name", ["telephone-6", "telephone-8"])
def test_a_shipped_network_costs_less_than_the_papers_lstms(name):
    bundle = find_bundle(name)
    features = bundle.features
    network = networks.build(
        bundle.network.name, features.num_frames, features.num_features, len(bundle.labels), bundle.network.options
    )
    assert networks.flops(network) / 1e6 == pytest.approx(bundle.training["window_mflop"], rel=0.01)
    assert networks.flops(network) < PAPER_MFLOP * 1e6


def test_a_window_has_the_same_logits_alone_and_in_a_batch():
    network = networks.build("conv-dual-lstm", 40, 16, 6, {"filters": [4, 4, 4], "units": [8, 6], "skip": 5})
    inputs = np.random.default_rng(0).normal(size=(5, 40, 16)).astype(np.float32)
    whole = np.asarray(network(inputs, training=False))
    assert whole.shape == (5, 6)
    np.testing.assert_allclose(np.asarray(network(inputs[3:4], training=False)), whole[3:4], atol=1e-5)


@pytest.mark.parametrize("own_means", [True, False])
def test_a_network_of_own_means_is_deaf_to_what_a_line_adds_to_each_feature(own_means):
    options = {"filters": [4, 4, 4], "units": [8, 6], "skip": 5, "own_means": own_means}
    network = networks.build("conv-dual-lstm", 40, 16, 6, options)
    rng = np.random.default_rng(0)
    inputs, colour = rng.normal(size=(5, 40, 16)).astype(np.float32), rng.normal(size=16).astype(np.float32)
    plain, coloured = (np.asarray(network(x, training=False)) for x in (inputs, inputs + colour))
    assert np.allclose(coloured, plain, atol=1e-5) == own_means


def test_pitches_have_convolutions_of_their_own_and_bands_are_the_rest():
    options = {"filters": [4, 4, 4], "units": [8, 6], "skip": 5, "pitch_filters": [2, 3, 4], "num_pitches": 12}
    network = networks.build("conv-dual-lstm", 40, 16 + 12, 6, options)
    assert network.get_layer("conv_0").input.shape == (None, 40, 16, 1)
    assert network.get_layer("pitch_conv_0").input.shape == (None, 40, 12, 1)
    rng = np.random.default_rng(0)
    inputs, changed = rng.normal(size=(2, 3, 40, 28)).astype(np.float32)
    for columns in (slice(16), slice(16, 28)):  # both are heard
        other = inputs.copy()
        other[:, :, columns] = changed[:, :, columns]
        assert np.abs(np.asarray(network(other)) - np.asarray(network(inputs))).max() > 1e-3
    with pytest.raises(ConfigError, match=r"pitch_filters: received \[2\], expected one for each of \[4, 4, 4\]"):
        networks.build("conv-dual-lstm", 40, 28, 6, options | {"pitch_filters": [2]})
    with pytest.raises(ConfigError, match="num_pitches: received 12, expected 1 to 11, some of the features"):
        networks.build("conv-dual-lstm", 40, 12, 6, options)


def test_a_norm_of_images_trains_and_scores_as_kerass_own():
    from keras import layers

    network = networks.build("conv2d-lstm", 8, 8, 2, {"chunk_frames": 8, "filters": [5], "pools": [2], "units": 3})
    (norm,), own = networks.batch_norms(network), layers.BatchNormalization()
    own.build(norm.input.shape)
    images = np.random.default_rng(0).normal(2, 3, size=(16, 8, 8, 5)).astype(np.float32)
    for layer in (norm, own):
        layer.gamma.assign([1, 2, -1, 0.5, 0.25])
        layer.beta.assign([0, 1, 2, 3, 4])
    found = []
    for layer in (norm, own):
        x = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(x)
            trained = layer(x, training=True)
            loss = tf.reduce_sum(trained**3)
        gradients = tape.gradient(loss, [x, layer.gamma, layer.beta])
        found.append([trained, *gradients, layer.moving_mean, layer.moving_variance, layer(x, training=False)])
    for ours, kerass in zip(*found, strict=True):
        # TensorFlow's running variance is that of the population, n / (n − 1) of the images'.
        np.testing.assert_allclose(np.asarray(ours), np.asarray(kerass), rtol=1e-3, atol=1e-3)


PAPERS = {
    # recipe of paper: frames, features, labels, network, its options, parameters
    "001, two layers": (20, 40, 8, "lstm-stack", {
        "units": [128, 128], "dropouts": [0.0, 0.0], "batch_norm": False, "flatten": True, "dense": [],
    }, 238_600),
    "002, first": (1, 13, 8, "lstm-stack", {
        "across": True, "units": [128, 64], "dropouts": [0.3, 0.3], "batch_norm": False, "dense": [128],
    }, 125_320),
    "002, final": (1, 13, 8, "lstm-stack", {
        "across": True, "units": [256, 64], "dropouts": [0.3, 0.3], "batch_norm": False, "dense": [128],
    }, 355_720),
    "003, as trained": (1, 30, 6, "dense-stack", {}, 51_014),
    # 160 + 4,640 + 18,496 + 73,856 of convolutions, 960 of BatchNorm, 49,408 of the LSTM, 520 of the last layer
    "004": (559, 128, 8, "conv2d-lstm", {}, 148_040),
}  # fmt: skip


@pytest.mark.parametrize("paper", PAPERS)
def test_the_papers_networks_have_their_parameters(paper):
    frames, features, labels, name, options, parameters = PAPERS[paper]
    network = networks.build(name, frames, features, labels, options)
    assert network.count_params() == parameters
    assert network.output_shape == (None, labels)


def test_lstms_cost_their_steps_and_not_one_turn_of_a_loop():
    network = networks.build("lstm-stack", 30, 5, 3, {"units": [8], "dropouts": [0.0], "dense": []})
    steps = 30 * 2 * (5 + 8) * 4 * 8
    assert steps + 2 * 8 * 3 <= networks.flops(network) <= 1.2 * steps
    both_ways = {"units": [8], "dropouts": [0.0], "dense": [], "bidirectional": True}
    network = networks.build("lstm-stack", 30, 5, 3, both_ways)
    assert 2 * steps <= networks.flops(network) <= 2.4 * steps


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"flatten": True}, {"units": [6], "dropouts": [0.1]}])
def test_an_lstm_stack_takes_every_variant_of_the_papers_search(options):
    network = networks.build("lstm-stack", 12, 5, 3, {"units": [6, 4], "dropouts": [0.1, 0.1], "dense": [7], **options})
    inputs = np.random.default_rng(0).normal(size=(4, 12, 5)).astype(np.float32)
    whole = np.asarray(network(inputs, training=False))
    np.testing.assert_allclose(np.asarray(network(inputs[2:3], training=False)), whole[2:3], atol=1e-5)


def test_chunks_of_a_spectrogram_stay_with_their_window():
    network = networks.build("conv2d-lstm", 320, 128, 8, {})
    inputs = np.random.default_rng(0).normal(size=(3, 320, 128)).astype(np.float32)
    whole = np.asarray(network(inputs, training=False))
    np.testing.assert_allclose(np.asarray(network(inputs[1:2], training=False)), whole[1:2], atol=1e-4)


def test_an_unknown_network_or_option_is_told():
    with pytest.raises(ConfigError, match="received 'transformer', expected one of conv-dual-lstm, conv1d-lstm"):
        networks.build("transformer", 40, 16, 6, {})
    with pytest.raises(ConfigError, match="does not take these options"):
        networks.build("conv-dual-lstm", 40, 16, 6, {"heads": 8})
    with pytest.raises(ConfigError, match=r"dropouts: received \[0.4, 0.0\], expected one for each of units \[8\]"):
        networks.build("lstm-stack", 40, 16, 6, {"units": [8], "dropouts": [0.4, 0.0]})
