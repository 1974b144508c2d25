"""Inputs → Recordings in manifest order, and shards of them.

``read_inputs`` takes folders, globs, CSV/Parquet manifests, files and URLs; ``make_shards`` cuts what it finds into
tasks. Nothing here opens a recording.
"""

from batchser.manifest.inputs import MANIFEST_SUFFIXES, Manifest, read_inputs
from batchser.manifest.shards import UNKNOWN_SECONDS, Shard, make_shards

__all__ = ["MANIFEST_SUFFIXES", "UNKNOWN_SECONDS", "Manifest", "Shard", "make_shards", "read_inputs"]
