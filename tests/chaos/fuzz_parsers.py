"""Coverage-guided fuzzing of the parsers that are ours: headers by bytes, CSV and Parquet manifests (atheris).

    .venv/bin/python tests/chaos/fuzz_parsers.py -max_total_time=120

Ends with a trace where one of them raises what it does not promise, or takes seconds; libFuzzer's options apply.
"""

from __future__ import annotations

import contextlib
import io
import sys

import atheris

with atheris.instrument_imports(include=["batchser"]):
    from batchser.audio.formats import format_of
    from batchser.audio.headers import corrected_wav, ends_early, wav_layout
    from batchser.audio.source import Source
    from batchser.errors import AudioError
    from batchser.manifest.rows import read_rows
    from batchser.records import Recording

_SUFFIXES = (".wav", ".mp3", ".ogg", ".flac", ".m4a", ".amr", ".vox", ".sph", ".raw", "")
_CONTAINERS = ("ogg", "caf", "wma", "w64", "au", "aiff", "flac")
_SEEDS = (
    b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x07\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0data\x04\0\0\0\xff\xff\xff\xff",
    b"RF64\xff\xff\xff\xffWAVEds64\x1c\0\0\0"
    + bytes(28)
    + b"fmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data",
    b"caff\0\x01\0\0desc\0\0\0\0\0\0\0\x20" + bytes(32),
    b"OggS\0\x02" + bytes(20) + b"\x01\x1e\x01vorbis" + bytes(23),
    b'path,call_id,roles,started_at\na.wav,1,"agent,customer",2026-11-20T09:14:05+01:00\n',
    b"PAR1",
)


def one_input(data: bytes) -> None:
    """Give the same bytes to every parser."""
    suffix = _SUFFIXES[(data[0] if data else 0) % len(_SUFFIXES)]
    source = Source(io.BytesIO(data), len(data), suffix)
    with contextlib.suppress(AudioError):
        format_of(source, Recording(0, "c", f"/x{suffix}"))
    layout = wav_layout(source)
    if layout is not None:
        view = corrected_wav(source, layout)
        assert len(view.read(1 << 20)) <= len(data) + 200
    for container in _CONTAINERS:
        ends_early(source, container)
    for parquet in (False, True):
        rows = read_rows("m", data, parquet=parquet, reserved=frozenset({"status"}), max_rows=100)
        assert rows.faults or len(rows.paths) == len(rows.numbers) == rows.columns.num_rows


def main() -> None:
    """Start from the seeds; the rest is libFuzzer's."""
    for seed in _SEEDS:
        one_input(seed)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
