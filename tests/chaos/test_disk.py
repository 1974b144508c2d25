"""A disk that is full, for real: a file system of two megabytes in a mount namespace of the test's own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import call, write
from rows import assert_same_tables

from batchser.bundle import Bundle

_PROBE = ["unshare", "--user", "--map-root-user", "--mount", "true"]
may_mount = (
    shutil.which("unshare") is not None and subprocess.run(_PROBE, check=False, capture_output=True).returncode == 0
)
pytestmark = pytest.mark.skipif(not may_mount, reason="this machine does not let users mount file systems of their own")

NIGHT = """
set -u
mount -t tmpfs -o size={size}k tmpfs {disk} || exit 99
{run}; echo "full $?"
mount -o remount,size=100m {disk} || exit 99
{run} --json-summary {kept}/summary.json; echo "mended $?"
mount -o remount,ro {disk} || exit 99
{run} --fresh; echo "read-only $?"
cp -r {disk}/. {kept}
"""


@pytest.mark.parametrize("out", ["r.parquet", "night"])
@pytest.mark.parametrize("share", [0.2, 0.7, 1.4])
def test_a_full_disk_breaks_a_run_off_and_a_mended_one_resumes(
    tiny_bundle: Bundle, tmp_path: Path, share: float, out: str
) -> None:
    """Full at the first part, amid the parts, and at the commit: by shares of what the result takes."""
    for number in range(4):
        write(tmp_path / f"{number}.wav", call(number, seconds=6.0), call(number + 9, seconds=6.0), subtype="ULAW")
    lines = ["path,call_id,roles,started_at"]
    lines += [f'{k % 4}.wav,a-rather-long-call-id-{k},"agent,customer",2026-11-20' for k in range(200)]
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    batchser = Path(sys.executable).with_name("batchser")
    run = f"{batchser} run {manifest} --model {tiny_bundle.folder} --workers 0 --quiet --out "
    assert subprocess.run(f"{run}{tmp_path / out}", shell=True, check=False).returncode == 0
    found = [tmp_path / out] if out.endswith(".parquet") else []
    found += [*tmp_path.rglob("*segments.parquet"), *tmp_path.rglob("calls.parquet")]
    size_kb = round(share * sum(path.stat().st_size for path in found) / 1024)
    script = NIGHT.format(size=size_kb, disk=disk, kept=kept, run=f"{run}{disk / out}")
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.stdout.split("\n")[:3] == ["full 3", "mended 0", "read-only 3"], done.stdout + done.stderr
    first, *_ = errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "cannot be written to" in errors[1]
    assert "No space left on device" in first
    assert "the same command" in first
    assert "Traceback" not in done.stderr
    pairs = (
        [(out, out), ("r.segments.parquet",) * 2]
        if out.endswith(".parquet")
        else [("night/calls",) * 2, ("night/segments",) * 2]
    )
    for ours, expected in pairs:
        assert_same_tables(kept / ours, tmp_path / expected, in_any_order=True)
    assert not list(kept.rglob("*.tmp"))
