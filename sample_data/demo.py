"""Score the sample calls with `batchser run` and show the two tables it leaves: what `make demo` runs."""

import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = "sample_data/manifest.csv"
CALLS = "results.parquet"
SEGMENTS = "results.segments.parquet"
SHOWN_CALL = "billing-0001"
NUM_SHOWN_WINDOWS = 8
FAULTS = ("unreadable", "crashed", "failed")
BROKEN_CALL = "support-0004"
CALL_COLUMNS = [
    "call_id", "channel", "role", "status", "emotion", "confidence", "negativity", "trend", "queue",
]  # fmt: skip
WINDOW_COLUMNS = ["channel", "start_s", "end_s", "kind", "voiced_s", "level_dbfs", "emotion", "confidence"]


def run_batchser() -> int:
    """Run the job as a user would, from the repository's folder, and return its exit code."""
    command = [MANIFEST, "--out", CALLS, "--fresh"]
    executable = Path(sys.executable).with_name("batchser")
    if not executable.exists():
        print(f"demo: {executable} is missing; install the package first: make setup", file=sys.stderr)
        return 2
    print("$ batchser run", *command, flush=True)
    return subprocess.run([executable, "run", *command], cwd=ROOT, check=False).returncode


def printed(table: pd.DataFrame) -> None:
    """Print a table without its index, empty where a value is null."""
    text = pd.DataFrame(
        {
            name: [
                "" if pd.isna(value) else f"{value:.2f}" if isinstance(value, float) else str(value) for value in column
            ]
            for name, column in table.astype(object).items()
        }
    )
    print(text.to_string(index=False), end="\n\n")


def show() -> None:
    """Read both tables and print a compact picture of them."""
    calls = pd.read_parquet(ROOT / CALLS)
    calls["channel"] = calls["channel"].astype("Int8")  # null for the broken recording, otherwise a whole number
    segments = pd.read_parquet(ROOT / SEGMENTS)

    print(
        f"The calls table: {len(calls)} rows (agents are not scored by default), {len(calls.columns)} columns. Some:\n"
    )
    printed(calls[CALL_COLUMNS])

    shown = calls[calls["call_id"] == SHOWN_CALL]
    windows = segments[(segments["call_id"] == SHOWN_CALL) & segments["channel"].isin(shown["channel"].dropna())]
    print(f"The windows table: {len(segments)} rows. The first of {SHOWN_CALL}'s customer:\n")
    printed(windows[WINDOW_COLUMNS].head(NUM_SHOWN_WINDOWS))

    for call in calls[calls["status"].isin(FAULTS)].itertuples():
        print(f"{call.call_id} is {call.status}: {call.error}")
    print(
        "\nThe voices are synthetic, so these emotions say how the tables look, not how well the model hears."
        f"\nThe tables lie in {ROOT}. To load them there:\n"
        f'\n    calls = pd.read_parquet("{CALLS}")'
        f'\n    segments = pd.read_parquet("{SEGMENTS}")'
    )


def fault_of(exit_code: int, written_before_ns: int) -> str | None:
    """Say what is not as it should be with one recording broken on purpose; None when all is."""
    if exit_code != 1:
        return f"batchser ended with exit code {exit_code}; expected 1, as one recording is broken on purpose"
    # A Python traceback exits with 1 too: only a table newly written tells that the job was done.
    if written_ns(ROOT / CALLS) == written_before_ns:
        return f"batchser ended with exit code 1 but wrote no {CALLS}"
    calls = pd.read_parquet(ROOT / CALLS, columns=["call_id", "status"])
    broken = sorted(calls["call_id"][calls["status"].isin(FAULTS)].astype(str))
    if broken != [BROKEN_CALL]:
        return f"could not be scored: {', '.join(broken)}; expected {BROKEN_CALL} alone"
    return None


def written_ns(path: Path) -> int:
    """When a file was last written; 0 when there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def main() -> int:
    """Run and show; 0 when the run ended as it should."""
    written_before_ns = written_ns(ROOT / CALLS)
    exit_code = run_batchser()
    fault = fault_of(exit_code, written_before_ns)
    if fault is not None:
        print(f"demo: {fault}", file=sys.stderr)
        return exit_code or 1
    print(
        "\nExit code 1, as it should be: the job is done, but one recording could not be read (it is broken on"
        "\npurpose). It has its row with the reason, and the others are scored.\n"
    )
    show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
