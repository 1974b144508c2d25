"""OpenVINO's networks give Keras's logits from the same weights, for any number of windows; who scores is told."""

import dataclasses
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_arrays

from batchser import engine, networks, scoring
from batchser.bundle import NetworkSpec, installed, open_bundle
from batchser.errors import BundleError, ConfigError
from batchser.pipeline import score_file
from batchser.records import KINDS
from batchser.scoring import Model, choose_engine, inference, num_gpus
from batchser.settings import RunSettings

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_gpu_in_sight(monkeypatch):
    """Whatever the machine that tests has."""
    num_gpus.cache_clear()
    monkeypatch.setattr(scoring, "_GPU_DEVICES", ())
    yield
    num_gpus.cache_clear()


CONV_DUAL_LSTM = [
    {},
    {"units": [16]},
    {"units": [8, 16, 24], "skip": 20},
    {"own_means": True},
    {"filters": [4, 8, 8, 12]},
    {"pitch_filters": [4, 6, 8], "units": [16, 24]},
    {"filters": [4, 8], "pitch_filters": [4, 6], "num_pitches": 20, "own_means": True, "dropout": 0.0},
]
GATE_CONV = [{}, {"filters": [8, 9, 10], "kernel": 3}]


def some_weights(network) -> list[np.ndarray]:
    """Random weights; the variances of norms are positive."""
    rng = np.random.default_rng(1)
    return [
        (rng.uniform(0.3, 2, weight.shape) if "variance" in weight.path else 0.15 * rng.standard_normal(weight.shape))
        for weight in network.weights
    ]


@pytest.mark.parametrize(
    ("name", "options"),
    [("conv-dual-lstm", options) for options in CONV_DUAL_LSTM] + [("gate-conv", options) for options in GATE_CONV],
)
@pytest.mark.parametrize("steps", [184, 93])
def test_logits_are_those_of_keras_for_any_options(name, options, steps):
    shape = (steps, 64 + (options.get("num_pitches", 48) if "pitch_filters" in options else 0))
    network = networks.build(name, *shape, 6, options)
    weights = some_weights(network)
    network.set_weights(weights)
    arrays = [np.asarray(weight, np.float32) for weight in weights]
    compiled = engine.Compiled(engine.describe(NetworkSpec(name, options), arrays, "emotion", shape, 6), 1)
    windows = np.random.default_rng(2).standard_normal((engine.SLICE_WINDOWS + 3, *shape)).astype(np.float32)
    expected = np.asarray(inference(network, *shape)(windows))
    assert expected.std() > 0.1
    np.testing.assert_allclose(compiled(windows), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["telephone-6", "telephone-8"])
def test_shipped_bundles_say_the_same_in_both_engines(name):
    (folder,) = (folder for folder in installed(()) if folder.name == name)
    bundle = open_bundle(folder)
    ours, reference = (Model(bundle, engine_name=engine_name) for engine_name in ("openvino", "tensorflow"))
    assert (ours.engine, reference.engine) == ("openvino", "tensorflow")
    features = bundle.features
    rng = np.random.default_rng(3)
    prepared = rng.standard_normal((200, features.num_steps, features.num_features)).astype(np.float32)
    np.testing.assert_allclose(ours.emotions(prepared), reference.emotions(prepared), atol=1e-5)
    mel_db = rng.uniform(-80, 0, (50, features.num_frames, features.num_mels)).astype(np.float32)
    num_frames = rng.integers(1, features.num_frames + 1, 50).astype(np.int32)
    np.testing.assert_allclose(ours.gate(mel_db, num_frames), reference.gate(mel_db, num_frames), atol=1e-5)


@pytest.mark.parametrize("name", ["telephone-6", "telephone-8"])
def test_both_engines_hear_the_same_emotion_in_calls(name):
    """Issue 5's promise of the fast path and the reference: p within 0.01, the emotion in 99.5 % of windows."""
    calls = sorted((ROOT / "sample_data/calls").rglob("*-000[123].*"))  # the fourth is broken
    settings = RunSettings(roles=("all",))
    tables = [
        pd.concat([score_file(call, settings, name, engine=engine_name) for call in calls]).reset_index()
        for engine_name in ("openvino", "tensorflow")
    ]
    ours, reference = (table[table.emotion.notna()] for table in tables)
    assert len(ours) > 30
    np.testing.assert_array_equal(ours.index, reference.index)
    probabilities = [column for column in ours if column.startswith("p_")]
    np.testing.assert_allclose(ours[probabilities], reference[probabilities], atol=0.01)
    assert (ours.emotion.astype(str) == reference.emotion.astype(str)).mean() >= 0.995


@pytest.mark.parametrize("count", [0, 1, engine.SLICE_WINDOWS - 1, engine.SLICE_WINDOWS, engine.SLICE_WINDOWS + 1, 50])
def test_a_window_s_answer_does_not_depend_on_its_company(tiny_model, count):
    features = tiny_model.bundle.features
    mel_db = np.random.default_rng(4).uniform(-80, 0, (count, features.num_frames, features.num_mels))
    mel_db = mel_db.astype(np.float32)
    num_frames = np.full(count, features.num_frames, np.int32)
    together = tiny_model.gate(mel_db, num_frames)
    assert together.shape == (count, features.num_frames // 4, len(KINDS))
    for k in range(count):
        np.testing.assert_allclose(tiny_model.gate(mel_db[k : k + 1], num_frames[:1]), together[k : k + 1], atol=1e-6)


def test_threads_may_share_a_model(tiny_model):
    features = tiny_model.bundle.features
    windows = np.random.default_rng(5).standard_normal((8, 20, features.num_steps, features.num_features))
    windows = windows.astype(np.float32)
    expected = [tiny_model.emotions(window) for window in windows]
    found = [None] * len(windows)

    def score(k: int) -> None:
        for _ in range(5):
            found[k] = tiny_model.emotions(windows[k])

    threads = [threading.Thread(target=score, args=(k,)) for k in range(len(windows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, expected)


def test_weights_that_do_not_fit_are_refused(tiny_bundle):
    names = sorted(name for name in tiny_arrays() if name.startswith("gate/"))
    for missing in (names[0], names[-1]):
        arrays = {name: array for name, array in tiny_arrays().items() if name != missing}
        expected = re.escape(f"the network expects {tiny_arrays()[missing].shape} as array {names.index(missing)}")
        with pytest.raises(BundleError, match=rf"weights 'gate': received shapes .*, {expected}"):
            Model(tiny_bundle, arrays)
    with pytest.raises(BundleError, match=rf"weights 'gate': received shapes .* expects {len(names)} arrays"):
        Model(tiny_bundle, tiny_arrays() | {"gate/999": np.ones(3, np.float32)})


@pytest.mark.parametrize("engine_name", ["openvino", "tensorflow"])
@pytest.mark.parametrize("options", [{"pitch_filters": [4]}, {"pitch_filters": [4, 8, 8], "num_pitches": 64}])
def test_options_that_contradict_each_other_are_refused(tiny_bundle, engine_name, options):
    bundle = dataclasses.replace(tiny_bundle, network=NetworkSpec("conv-dual-lstm", options))
    with pytest.raises(ConfigError, match=r"'conv-dual-lstm' does not take these options for 184 steps of 64: "):
        Model(bundle, tiny_arrays(), engine_name=engine_name)


def test_networks_that_only_keras_has_score_in_tensorflow(tiny_bundle):
    bundle = dataclasses.replace(tiny_bundle, network=NetworkSpec("lstm-stack", {}))
    assert choose_engine(bundle) == "tensorflow"
    with pytest.raises(ConfigError, match="engine: OpenVINO does not run lstm-stack, a network of tiny; say auto"):
        choose_engine(bundle, "openvino")


def test_an_engine_that_there_is_not_is_told(tiny_bundle):
    with pytest.raises(ConfigError, match="engine: received 'onnx', expected one of auto, openvino, tensorflow"):
        choose_engine(tiny_bundle, "onnx")


def test_tensorflow_scores_where_it_finds_a_gpu_or_openvino_is_not_there(tiny_bundle, monkeypatch):
    assert choose_engine(tiny_bundle) == "openvino"
    monkeypatch.setattr(scoring, "num_gpus", lambda: 1)
    assert choose_engine(tiny_bundle) == "tensorflow"
    assert Model(tiny_bundle).batch_windows > Model(tiny_bundle, engine_name="openvino").batch_windows
    monkeypatch.setattr(scoring, "num_gpus", lambda: 0)
    monkeypatch.setattr(scoring.importlib.util, "find_spec", lambda name: None)
    assert choose_engine(tiny_bundle) == "tensorflow"
    with pytest.raises(ConfigError, match="engine: OpenVINO is not installed"):
        choose_engine(tiny_bundle, "openvino")


@pytest.mark.parametrize(("code", "told", "count"), [(0, "2\n", 2), (0, "0\n", 0), (1, "", 0)])
def test_gpus_are_looked_for_in_another_process_where_a_device_is_in_sight(tmp_path, monkeypatch, code, told, count):
    asked = []

    def answer(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, code, told, "")

    monkeypatch.setattr(scoring.subprocess, "run", answer)
    monkeypatch.setattr(scoring, "_GPU_DEVICES", (str(tmp_path / "device"),))
    assert num_gpus() == 0
    assert asked == []
    (tmp_path / "device").touch()
    num_gpus.cache_clear()
    assert [num_gpus(), num_gpus()] == [count, count]
    assert len(asked) == 1


def test_scoring_does_not_load_tensorflow(tiny_bundle, tmp_path):
    """It takes seconds to start and half a gigabyte a process."""
    program = """if True:
        import sys
        from pathlib import Path
        from batchser import scoring
        scoring._GPU_DEVICES = ()
        scoring.load_model(Path(sys.argv[1]), sys.argv[2])
        print(sorted({"tensorflow", "keras", "torch"} & set(sys.modules)))
    """
    command = [sys.executable, "-c", program, str(tiny_bundle.folder), tiny_bundle.sha256]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
