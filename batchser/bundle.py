"""Model bundles: a folder with weights, settings and a card. The contract on disk:

    NAME/
      bundle.json    labels, networks, settings, thresholds, scores, data licences; sha256 of each file and of itself
      weights.npz    plain arrays: ``emotion/000`` …, ``gate/000`` … in the order of the network's weights, and the
                     scaler's ``scaler/mean`` and ``scaler/std``. No pickles, no code: networks are built by networks.py
      split-K.npz    optional: the model of the protocol's split K, behind the card's scores (`batchser evaluate`):
                     ``emotion/000`` …, its scaler, and its ``temperature``
      README.md      the model card

Hashes are checked when a bundle is opened; what does not fit is a BundleError (exit code 2).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from batchser.errors import BundleError, ConfigError
from batchser.records import FloatArray
from batchser.settings import FeatureSettings, GateSettings, fingerprint_of

FORMAT_VERSION: Final = 1
#: Settings that are younger than some bundles, with what those were made with.
_ADDED: Final = {
    "features": {
        "taper": "hann",
        "taper_samples": 0,
        "steps": 0,
        "below_peak": False,
        "keep_colour": False,
        "num_pitches": 48,
        "pitch_min_hz": 62.5,
        "pitch_max_hz": 500.0,
    }
}
_MAX_BYTES: Final = 256 * 2**20  # a bundle is a few megabytes; a hostile one must not fill the memory


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """Which builder of networks.py, and its options."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a model needs besides its weights, and what its card says. ``sha256`` stands for all of it."""

    name: str
    labels: tuple[str, ...]
    negative_labels: tuple[str, ...]
    network: NetworkSpec
    gate_network: NetworkSpec
    features: FeatureSettings
    gate: GateSettings
    temperature: float
    abstain_threshold: float
    licence: str
    data: tuple[Mapping[str, Any], ...]
    training: Mapping[str, Any]
    scores: Mapping[str, Any]
    sha256: str = ""
    folder: Path | None = None


def write_bundle(
    folder: Path,
    bundle: Bundle,
    weights: Mapping[str, FloatArray],
    split_weights: Mapping[str, Mapping[str, FloatArray]],
    card: str,
) -> Bundle:
    """Write ``bundle`` and its arrays beside ``folder``, move them there, and open the bundle again.

    ``split_weights`` has the arrays of each split's model, by the split's name.
    What stood in ``folder`` before is replaced whole: a bundle is never half old, half new.
    """
    place, folder = folder, folder.with_name(f".{folder.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = {"weights.npz": weights} | {split_file(name): arrays for name, arrays in split_weights.items()}
    for name, arrays in files.items():
        np.savez_compressed(folder / name, **arrays)  # type: ignore[arg-type]  # the stub takes them for its options
    body = dataclasses.asdict(bundle)
    del body["sha256"], body["folder"]
    body |= {"format_version": FORMAT_VERSION, "files": {name: _file_sha256(folder / name) for name in files}}
    body["sha256"] = fingerprint_of(body)
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "bundle.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    folder.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    return open_bundle(place)


def open_bundle(folder: Path) -> Bundle:
    """Read ``bundle.json`` and check every hash.

    Raises
    ------
    BundleError : a file is missing or is not the one that was written; the format is another version's
    """
    body = _read_json(folder)
    claimed = body.pop("sha256", None)
    if body.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"{folder}: bundle format {body.get('format_version')!r}; this batchser reads format {FORMAT_VERSION}. "
            "Train it again or install the batchser that wrote it"
        )
    if claimed != fingerprint_of(body):
        raise BundleError(f"{folder}/bundle.json was changed after it was written: its own sha256 differs. Restore it")
    if "weights.npz" not in body["files"]:
        raise BundleError(f"{folder}/bundle.json lists no weights.npz, so nothing vouches for it. Restore the bundle")
    unlisted = sorted({path.name for path in folder.glob(split_file("*"))} - body["files"].keys())
    if unlisted:
        raise BundleError(
            f"{folder}: bundle.json does not list {', '.join(unlisted)}, so nothing vouches for it. Remove it, or "
            "restore the bundle"
        )
    for name, expected in body.pop("files").items():
        if Path(name).name != name:
            raise BundleError(f"{folder}/bundle.json names a file outside its folder: {name!r}")
        received = _file_sha256(folder / name)
        if received != expected:
            raise BundleError(
                f"{folder / name}: sha256 is {received[:12]}…, bundle.json expects {expected[:12]}…; the file is "
                "damaged or was replaced. Restore the bundle"
            )
    del body["format_version"]
    for name, added in _ADDED.items():
        body[name] = added | body.get(name, {})
    _check_keys(folder, body)
    try:
        return Bundle(
            **body
            | {
                "labels": tuple(body["labels"]),
                "negative_labels": tuple(body["negative_labels"]),
                "network": NetworkSpec(**body["network"]),
                "gate_network": NetworkSpec(**body["gate_network"]),
                "features": FeatureSettings(**body["features"] | {"names": tuple(body["features"]["names"])}),
                "gate": GateSettings(**body["gate"]),
                "data": tuple(body["data"]),
                "sha256": claimed,
                "folder": folder,
            }
        )
    except (KeyError, TypeError, ConfigError) as error:
        raise BundleError(f"{folder}/bundle.json does not fit this version of batchser: {error}") from error


def _check_keys(folder: Path, body: Mapping[str, Any]) -> None:
    """Refuse settings that are not all there: a default filled in here would change results under the same sha256."""
    for name, kind in (("features", FeatureSettings), ("gate", GateSettings)):
        expected = {field.name for field in dataclasses.fields(kind)}
        differing = set(body.get(name) or ()) ^ expected
        if differing:
            raise BundleError(
                f"{folder}/bundle.json does not fit this version of batchser: {name} lacks, or has besides, "
                f"{', '.join(sorted(differing))}. Train it again, or install the batchser that wrote it"
            )


def split_file(name: str) -> str:
    """Name the file of the model of the split ``name``."""
    return f"split-{name}.npz"


def read_weights(bundle: Bundle, file: str = "weights.npz") -> dict[str, FloatArray]:
    """Read the arrays of a bundle's file by name, float32.

    Raises
    ------
    BundleError : not a file of plain arrays (pickled objects are refused)
    """
    if bundle.folder is None:
        raise BundleError(f"{bundle.name}: the bundle was never written to a folder")
    try:
        with zipfile.ZipFile(bundle.folder / file) as archive:
            num_bytes = sum(entry.file_size for entry in archive.infolist())
        if num_bytes > _MAX_BYTES:
            raise BundleError(
                f"{bundle.folder / file}: unpacks to {num_bytes} bytes, more than a bundle's {_MAX_BYTES}"
            )
        with np.load(bundle.folder / file, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name], np.float32) for name in arrays.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{bundle.folder / file}: not a file of plain arrays: {error}") from error


def weights_of(
    arrays: Mapping[str, FloatArray], prefix: str, shapes: Sequence[tuple[int, ...]] | None = None
) -> list[FloatArray]:
    """Pick the arrays ``prefix/000`` … and check them against a network's shapes, where those are given.

    Raises
    ------
    BundleError : another number of arrays, another shape, or a value that is not finite
    """
    names = sorted(name for name in arrays if name.startswith(f"{prefix}/"))
    found = [arrays[name] for name in names]
    received = [tuple(array.shape) for array in found]
    if shapes is not None and received != [tuple(shape) for shape in shapes]:
        raise BundleError(f"weights {prefix!r}: received shapes {received}, the network expects {list(shapes)}")
    if not all(np.isfinite(array).all() for array in found):
        raise BundleError(f"weights {prefix!r} hold values that are not finite")
    return found


def named_weights(prefix: str, weights: Sequence[FloatArray]) -> dict[str, FloatArray]:
    """Name a network's weights for the file: ``prefix/000``, ``prefix/001``, …"""
    return {f"{prefix}/{k:03d}": np.asarray(array, np.float32) for k, array in enumerate(weights)}


def find_bundle(name_or_folder: str, search: Sequence[Path] = ()) -> Bundle:
    """Open a bundle by its folder, or by name among those the package carries, then in ``search``.

    Raises
    ------
    BundleError : there is none; the message lists those that are installed
    """
    if os.sep in name_or_folder or (Path(name_or_folder) / "bundle.json").is_file():
        return open_bundle(Path(name_or_folder).absolute())
    for folder in (*carried_folders(), *search):
        if (folder / name_or_folder / "bundle.json").is_file():
            return open_bundle((folder / name_or_folder).absolute())
    names = ", ".join(path.name for path in installed(search)) or "none"
    raise BundleError(
        f"model {name_or_folder!r}: no such bundle. Installed: {names}. Give one of these, a folder that holds a "
        "bundle.json, or set BATCHSER_MODELS to the folder of your bundles"
    )


def installed(search: Sequence[Path] = ()) -> list[Path]:
    """Return the folders of all bundles that a name reaches, in the order of look-up."""
    return [
        path
        for folder in (*carried_folders(), *search)
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if (path / "bundle.json").is_file()
    ]


def carried_folders() -> list[Path]:
    """Where the package's own bundles lie: inside it in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    return [folder for folder in (package / "models", package.parent / "models") if folder.is_dir()]


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "bundle.json"
    if not path.is_file():
        raise BundleError(f"{folder}: no bundle.json there; expected a model bundle as `batchser train` writes it")
    if path.stat().st_size > _MAX_BYTES:
        raise BundleError(f"{path}: {path.stat().st_size} bytes is no bundle.json")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path}: not JSON: {error}. Restore the bundle") from error
    if not isinstance(body, dict) or not isinstance(body.get("files"), dict):
        raise BundleError(f"{path}: not a bundle's description. Restore the bundle")
    return body


def _file_sha256(path: Path) -> str:
    if not path.is_file():
        raise BundleError(f"{path}: missing; bundle.json lists it. Restore the bundle")
    if path.stat().st_size > _MAX_BYTES:
        raise BundleError(f"{path}: {path.stat().st_size} bytes, more than a bundle's {_MAX_BYTES}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
