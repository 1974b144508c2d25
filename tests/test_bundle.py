"""Bundles: what is written is read again, and whatever was changed, lost or made up is told in a sentence."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_arrays, tiny_description

from batchser import bundle as bundles
from batchser.bundle import (
    Bundle,
    NetworkSpec,
    find_bundle,
    installed,
    open_bundle,
    read_weights,
    weights_of,
    write_bundle,
)
from batchser.errors import BundleError, ConfigError
from batchser.scoring import Model, load_model
from batchser.settings import FeatureSettings, fingerprint_of


@pytest.fixture
def folder(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to be changed."""
    return Path(shutil.copytree(tiny_bundle.folder, tmp_path / "copy"))


def rewrite(folder: Path, *, signed: bool = True, **changed: object) -> None:
    """Change values of bundle.json; ``signed`` makes its own sha256 fit again, as a forger would."""
    path = folder / "bundle.json"
    body = json.loads(path.read_text()) | changed
    if signed:
        del body["sha256"]
        body["sha256"] = fingerprint_of(body)
    path.write_text(json.dumps(body))


def test_what_was_written_is_read_again(tiny_bundle):
    again = open_bundle(tiny_bundle.folder)
    assert again == tiny_bundle
    assert dataclasses.replace(again, sha256="", folder=None) == tiny_description()
    assert len(again.sha256) == 64
    written = tiny_arrays()
    read = read_weights(again)
    assert read.keys() == written.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == np.float32


def test_weights_of_splits_and_the_card_lie_beside(tmp_path):
    arrays = tiny_arrays()
    splits = {"0": {"emotion/000": np.ones(3)}}
    bundle = write_bundle(tmp_path / "with", tiny_description(), arrays, splits, "# a card\n")
    assert read_weights(bundle, "split-0.npz")["emotion/000"].tolist() == [1, 1, 1]
    assert (tmp_path / "with" / "README.md").read_text() == "# a card\n"
    assert sorted(path.name for path in (tmp_path / "with").iterdir()) == [
        "README.md", "bundle.json", "split-0.npz", "weights.npz",
    ]  # fmt: skip


def test_the_sha256_stands_for_weights_and_settings(tmp_path, tiny_bundle):
    arrays = tiny_arrays()
    same = write_bundle(tmp_path / "same", tiny_description(), arrays, {}, "another card")
    assert same.sha256 == tiny_bundle.sha256
    warmer = dataclasses.replace(tiny_description(), temperature=1.6)
    assert write_bundle(tmp_path / "warmer", warmer, arrays, {}, "").sha256 != tiny_bundle.sha256
    arrays["scaler/std"][0] = 11
    assert write_bundle(tmp_path / "std", tiny_description(), arrays, {}, "").sha256 != tiny_bundle.sha256


def test_replaced_weights_are_noticed(folder):
    np.savez_compressed(folder / "weights.npz", **tiny_arrays() | {"scaler/mean": np.ones(64, np.float32)})
    with pytest.raises(BundleError, match=r"weights\.npz: sha256 is \w{12}…, bundle\.json expects \w{12}….*Restore"):
        open_bundle(folder)


def test_a_single_flipped_bit_of_the_weights_is_noticed(folder):
    data = bytearray((folder / "weights.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "weights.npz").write_bytes(data)
    with pytest.raises(BundleError, match="damaged or was replaced"):
        open_bundle(folder)


@pytest.mark.parametrize("changed", [{"temperature": 9.0}, {"licence": "none"}, {"labels": ["calm"] * 6}])
def test_a_changed_bundle_json_is_noticed(folder, changed):
    rewrite(folder, signed=False, **changed)
    with pytest.raises(BundleError, match=r"bundle\.json was changed after it was written.*Restore it"):
        open_bundle(folder)


def test_a_missing_file_is_told_by_its_name(folder):
    (folder / "weights.npz").unlink()
    with pytest.raises(BundleError, match=r"weights\.npz: missing; bundle\.json lists it\. Restore the bundle"):
        open_bundle(folder)


def test_a_split_model_that_nothing_vouches_for_is_refused(folder):
    np.savez_compressed(folder / "split-0.npz", **tiny_arrays())
    with pytest.raises(BundleError, match=r"bundle\.json does not list split-0\.npz, so nothing vouches for it"):
        open_bundle(folder)


def test_a_folder_without_a_bundle_is_told(tmp_path):
    with pytest.raises(BundleError, match=r"no bundle\.json there; expected a model bundle as `batchser train` writes"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"files": 3}', "\x00\x01"])
def test_a_bundle_json_that_is_none_is_told(folder, text):
    (folder / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=r"bundle\.json: not .*Restore the bundle"):
        open_bundle(folder)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_format_version_is_told(folder, version):
    rewrite(folder, format_version=version)
    with pytest.raises(BundleError, match=rf"bundle format {version!r}; this batchser reads format 1\. Train it again"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["../weights.npz", "/etc/passwd", "sub/weights.npz"])
def test_a_file_name_with_a_path_in_it_is_refused(folder, name):
    files = json.loads((folder / "bundle.json").read_text())["files"]
    rewrite(folder, files=files | {name: "0" * 64})
    with pytest.raises(BundleError, match="names a file outside its folder"):
        open_bundle(folder)


def test_weights_that_no_hash_covers_are_refused(folder):
    rewrite(folder, files={})
    with pytest.raises(BundleError, match=r"bundle\.json lists no weights\.npz.*Restore"):
        open_bundle(folder)


def test_a_settings_key_of_another_version_is_named(folder):
    features = dataclasses.asdict(FeatureSettings()) | {"pre_emphasis": 0.97}
    rewrite(folder, features=features)
    with pytest.raises(BundleError, match=r"does not fit this version of batchser: .*pre_emphasis"):
        open_bundle(folder)


def test_a_bundle_that_is_older_than_a_setting_has_what_it_was_made_with(folder):
    features = dataclasses.asdict(FeatureSettings())
    younger = "taper taper_samples steps below_peak keep_colour num_pitches pitch_min_hz pitch_max_hz"
    for name in younger.split():
        del features[name]
    rewrite(folder, features=features)
    assert open_bundle(folder).features == FeatureSettings()


def test_contradictory_settings_are_told(folder):
    rewrite(folder, features=dataclasses.asdict(FeatureSettings()) | {"mel_max_hz": 8000.0})
    with pytest.raises(BundleError, match=r"8000\.0 Hz lies above half of the rate 8000 Hz"):
        open_bundle(folder)


@pytest.mark.parametrize("key", ["labels", "network", "gate", "features", "temperature"])
def test_a_missing_key_is_told(folder, key):
    body = json.loads((folder / "bundle.json").read_text())
    del body[key], body["sha256"]
    (folder / "bundle.json").write_text(json.dumps(body | {"sha256": fingerprint_of(body)}))
    with pytest.raises(BundleError, match="does not fit this version of batchser"):
        open_bundle(folder)


def test_pickled_arrays_are_never_loaded(tmp_path):
    arrays = tiny_arrays() | {"emotion/000": np.array([{"a": "program"}], dtype=object)}
    bundle = write_bundle(tmp_path / "pickled", tiny_description(), arrays, {}, "")
    with pytest.raises(BundleError, match=r"weights\.npz: not a file of plain arrays"):
        read_weights(bundle)


def test_weights_that_are_no_archive_are_told(folder):
    (folder / "weights.npz").write_bytes(b"not a zip file")
    with pytest.raises(BundleError, match="not a file of plain arrays"):
        read_weights(dataclasses.replace(tiny_description(), folder=folder))


def test_a_bundle_that_was_never_written_has_no_weights():
    with pytest.raises(BundleError, match="tiny: the bundle was never written"):
        read_weights(tiny_description())


def test_weights_are_picked_in_order_and_checked():
    arrays = {"gate/001": np.zeros(2), "gate/000": np.ones((3, 2)), "emotion/000": np.zeros(9)}
    assert [array.shape for array in weights_of(arrays, "gate", [(3, 2), (2,)])] == [(3, 2), (2,)]
    with pytest.raises(BundleError, match=r"weights 'gate': received shapes .*the network expects \[\(3, 2\)\]"):
        weights_of(arrays, "gate", [(3, 2)])
    with pytest.raises(BundleError, match="not finite"):
        weights_of({"gate/000": np.array([1.0, np.nan])}, "gate", [(2,)])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["emotion/000", "gate/008", "scaler/mean", "scaler/std"])
def test_values_that_are_not_finite_are_refused(tiny_bundle, name, value):
    arrays = tiny_arrays()
    arrays[name].flat[0] = value
    with pytest.raises(BundleError, match="finite"):
        Model(tiny_bundle, arrays)


def test_arrays_of_another_shape_are_refused(tiny_bundle):
    arrays = tiny_arrays()
    arrays["emotion/000"] = arrays["emotion/000"][:2]
    with pytest.raises(BundleError, match=r"weights 'emotion': received shapes .* the network expects"):
        Model(tiny_bundle, arrays)
    with pytest.raises(BundleError, match="scaler"):
        Model(tiny_bundle, tiny_arrays() | {"scaler/std": np.ones(3, np.float32)})
    with pytest.raises(BundleError, match=r"the weights lack 'scaler/mean'"):
        Model(tiny_bundle, {name: array for name, array in tiny_arrays().items() if name != "scaler/mean"})


def test_an_unknown_network_is_told_with_those_that_exist(folder):
    rewrite(folder, network={"name": "transformer", "options": {}})
    bundle = open_bundle(folder)
    with pytest.raises(
        ConfigError, match=r"network: received 'transformer', expected one of conv-dual-lstm, conv1d-lstm"
    ):
        load_model(folder, bundle.sha256)


def test_an_option_that_a_network_does_not_have_is_told(tiny_bundle):
    spec = NetworkSpec("conv-dual-lstm", {"heads": 8})
    with pytest.raises(ConfigError, match=r"'conv-dual-lstm' does not take these options for 184 steps of 64: .*heads"):
        Model(dataclasses.replace(tiny_bundle, network=spec))


def test_a_bundle_that_changed_while_the_job_ran_is_not_scored_with(folder):
    with pytest.raises(BundleError, match="the bundle changed while the job ran"):
        load_model(folder, "0" * 64)


def test_a_bundle_is_found_by_folder_and_by_name(tiny_bundle, monkeypatch):
    parent = tiny_bundle.folder.parent
    assert find_bundle(str(tiny_bundle.folder)) == tiny_bundle
    assert find_bundle("tiny", [parent]) == tiny_bundle
    monkeypatch.chdir(parent)
    assert find_bundle("tiny") == tiny_bundle
    assert find_bundle("./tiny").sha256 == tiny_bundle.sha256


def test_bundles_that_the_package_carries_come_before_the_users(tiny_bundle, tmp_path, monkeypatch):
    carried = tmp_path / "carried"
    other = dataclasses.replace(tiny_description(), temperature=2.0)
    write_bundle(carried / "tiny", other, tiny_arrays(), {}, "")
    monkeypatch.setattr(bundles, "carried_folders", lambda: [carried])
    users = tiny_bundle.folder.parent
    assert find_bundle("tiny", [users]).temperature == 2.0
    assert installed([users, tmp_path / "nowhere"]) == [carried / "tiny", users / "tiny"]


def test_an_unknown_name_lists_what_is_installed(tiny_bundle, monkeypatch):
    monkeypatch.setattr(bundles, "carried_folders", list)
    with pytest.raises(BundleError) as raised:
        find_bundle("telefone", [tiny_bundle.folder.parent])
    assert str(raised.value) == (
        "model 'telefone': no such bundle. Installed: tiny. Give one of these, a folder that holds a bundle.json, or "
        "set BATCHSER_MODELS to the folder of your bundles"
    )
    with pytest.raises(BundleError, match="Installed: none"):
        find_bundle("telefone")


def test_a_folder_that_is_no_bundle_is_told_as_such(tmp_path):
    with pytest.raises(BundleError, match=r"no bundle\.json there"):
        find_bundle(str(tmp_path / "nothing"))
