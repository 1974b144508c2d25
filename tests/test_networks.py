"""The networks: what they take and give, and what a window costs."""

import numpy as np
import pytest

from batchser import networks
from batchser.bundle import find_bundle
from batchser.errors import ConfigError

PAPER_MFLOP = 170  # the LSTMs of 256 and 128 units of paper 000 on its 130 frames


def test_flops_of_a_layer_are_those_counted_by_hand():
    from keras import Input, Model, layers

    inputs = Input((10, 4))
    assert networks.flops(Model(inputs, layers.Dense(3, use_bias=False)(inputs))) == 2 * 10 * 4 * 3


@pytest.mark.parametrize("name", ["telephone-6"])
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


def test_an_unknown_network_or_option_is_told():
    with pytest.raises(ConfigError, match="received 'transformer', expected one of conv-dual-lstm, gate-conv"):
        networks.build("transformer", 40, 16, 6, {})
    with pytest.raises(ConfigError, match="does not take these options"):
        networks.build("conv-dual-lstm", 40, 16, 6, {"heads": 8})
