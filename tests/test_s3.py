"""Recordings and results in an S3-compatible store, work on a real Dask scheduler: the same rows as on this machine.

moto's server on loopback stands for the store, and a proxy before it for the store's bad minutes.
"""

from __future__ import annotations

import http.client
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from conftest import call, scheduler_address, write
from rows import assert_same_tables

from batchser.bundle import Bundle
from batchser.errors import ConfigError
from batchser.sink import SinkError, lease, vacuum
from batchser.sink.lease import Lease
from batchser.sink.store import RemoteStore

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
SECRET = "moto-secret-key"
PATIENCE_S = 1.0
NUM_CALLS = 24


@dataclass
class Proxy:
    """Hands requests on to the store, but for those that ``fails`` picks by their number.

    These get a 503, or with ``silent`` nothing for longer than anybody waits.
    """

    port: int
    store: tuple[str, int]
    fails: Callable[[int], bool] = field(default=lambda number: False)
    silent: bool = False
    num_requests: int = 0
    num_failed: int = 0


def proxy_before(store: tuple[str, int]) -> tuple[http.server.ThreadingHTTPServer, Proxy]:
    counting = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with counting:
                proxy.num_requests += 1
                fails = proxy.fails(proxy.num_requests)
                proxy.num_failed += fails
            if fails and proxy.silent:
                time.sleep(2 * PATIENCE_S)
                self.close_connection = True
                return
            if fails:
                self.answer(503, [], b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>")
                return
            connection = http.client.HTTPConnection(*proxy.store)
            connection.request(self.command, self.path, body, dict(self.headers))
            found = connection.getresponse()
            headers = [(name, value) for name, value in found.getheaders() if name.lower() != "transfer-encoding"]
            self.answer(found.status, headers, found.read())
            connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            stated = {name.lower() for name, _ in headers}
            for name, value in headers:
                self.send_header(name, value)
            if "content-length" not in stated:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy = Proxy(server.server_address[1], store)
    return server, proxy


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """The store: moto in a process of its own, the proxy before it; AWS's own variables tell where and who."""
    program = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"
    moto = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert moto.stderr is not None
    port = next(int(line.rsplit(":", 1)[1]) for line in moto.stderr if "Running on http" in line)
    threading.Thread(target=moto.stderr.read, daemon=True).start()
    server, made = proxy_before(("127.0.0.1", port))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{made.port}",
        "AWS_ACCESS_KEY_ID": "moto",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    was = dict(os.environ)
    os.environ.update(environment)
    try:
        yield made
    finally:
        os.environ.clear()
        os.environ.update(was)
        server.shutdown()
        server.server_close()
        moto.kill()
        moto.communicate()


@dataclass
class Centre:
    """The same calls in a folder and in a bucket, and the result of the folder's."""

    folder: Path
    model: str

    def run(self, where: str, *options: str) -> subprocess.CompletedProcess[str]:
        source = "s3://recordings/manifest.csv" if where.startswith("s3://") else self.folder / "manifest.csv"
        command = [Path(sys.executable).with_name("batchser"), "run", source, "--out", where, "--model", self.model]
        return subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=240)

    def assert_same(self, prefix: str, scratch: Path) -> None:
        """What lies below a prefix is what lies in the folder, but for the paths of recordings."""
        fsspec.filesystem("s3").invalidate_cache()
        fsspec.filesystem("s3").get(prefix, str(scratch), recursive=True)
        for kind in ("calls", "segments"):
            without_paths(scratch / kind)
            assert_same_tables(self.folder / "local" / kind, scratch / kind, in_any_order=True)


def without_paths(folder: Path) -> None:
    import pyarrow.parquet as pq

    for path in folder.rglob("*.parquet"):
        table = pq.ParquetFile(path).read()
        if "path" in table.column_names:
            number = table.column_names.index("path")
            pq.write_table(table.set_column(number, "path", pa.array([""] * table.num_rows)), path)


@pytest.fixture(scope="module")
def centre(proxy: Proxy, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Centre:
    folder = tmp_path_factory.mktemp("centre")
    store = fsspec.filesystem("s3")
    for bucket in ("recordings", "results"):
        store.mkdir(bucket)
    lines = ["path,call_id,roles,started_at"]
    for number in range(NUM_CALLS):
        name = f"{number % 4}.wav"
        if number < 4:
            write(folder / name, call(number, seconds=2.0), call(number + 50, seconds=2.0), subtype="ULAW")
        lines.append(f'{name},c{number},"agent,customer",2026-11-{1 + number % 3:02d}T08:00:00Z')
    lines.append("missing.wav,gone,mixed,2026-11-01T08:00:00Z")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        store.put_file(str(path), f"recordings/{path.name}")
    made = Centre(folder, str(tiny_bundle.folder))
    ended = made.run(str(folder / "local"), "--workers", "0")
    assert ended.returncode == 1, ended.stderr
    without_paths(folder / "local/calls")
    return made


def test_a_dataset_in_a_bucket_is_that_of_a_folder(centre: Centre, proxy: Proxy, tmp_path: Path) -> None:
    ended = centre.run("s3://results/plain", "--workers", "2", "--json-summary", str(tmp_path / "s.json"))
    assert ended.returncode == 1, ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    centre.assert_same("results/plain", tmp_path / "got")
    again = centre.run("s3://results/plain", "--workers", "0", "--json-summary", str(tmp_path / "s.json"))
    assert json.loads((tmp_path / "s.json").read_text())["recordings_reused"] == NUM_CALLS + 1
    assert "nothing was left to score" in again.stdout
    assert vacuum("s3://results/plain", call_ids=["c3"]).calls == ("c3",)
    names = [name.removeprefix("results/plain/") for name in fsspec.filesystem("s3").find("results/plain")]
    assert not [name for name in names if name.startswith(("_batchser/work", "_batchser/lock"))]


# ---------------------------------------------------------------------------------------------------- a real cluster


@contextmanager
def dask_process(name: str, address_file: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of `dask scheduler` or `dask worker`, as somebody else would start it."""
    command = [str(Path(sys.executable).with_name("dask")), name, "--scheduler-file", str(address_file), *options]
    process = subprocess.Popen([*command, "--no-dashboard"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


WORKER = ("--nthreads", "1", "--nworkers", "1", "--local-directory", "/tmp")


def test_workers_that_join_late_or_vanish_change_nothing(centre: Centre, proxy: Proxy, tmp_path: Path) -> None:
    address_file = tmp_path / "address.json"
    scheduler = ("--host", "127.0.0.1", "--port", "0")
    local = ("--local-directory", str(tmp_path))
    with dask_process("scheduler", address_file, *scheduler):
        address = scheduler_address(address_file)
        with dask_process("worker", address_file, *WORKER[:4], *local) as first:

            def replace_the_first() -> None:
                """Once it has left a part, another worker joins, and the first is gone without a word."""
                store = fsspec.filesystem("s3")
                while not store.glob("results/cluster/_batchser/work/calls-*"):
                    if ended.wait(0.05):
                        return
                    store.invalidate_cache()
                replaced.append(True)
                with dask_process("worker", address_file, *WORKER[:4], *local):
                    first.kill()
                    ended.wait()

            replaced: list[bool] = []
            ended = threading.Event()
            beside = threading.Thread(target=replace_the_first, daemon=True)
            beside.start()
            try:
                done = centre.run("s3://results/cluster", "--scheduler", address)
            finally:
                ended.set()
                beside.join(60)
    assert replaced
    assert done.returncode == 1, done.stderr
    centre.assert_same("results/cluster", tmp_path / "got")


# ---------------------------------------------------------------------------------------------------- bad minutes


@pytest.mark.parametrize("silent", [False, True])
def test_a_store_that_throttles_or_says_nothing_slows_a_run_down_and_no_more(
    centre: Centre, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    patience = {"config_kwargs": {"read_timeout": PATIENCE_S, "connect_timeout": PATIENCE_S}}
    monkeypatch.setenv("FSSPEC_S3", json.dumps(patience))
    every = 40 if silent else 7
    proxy.fails, proxy.silent, proxy.num_failed = lambda number: number % every == 0, silent, 0
    out = f"results/{'silent' if silent else 'slow'}"
    try:
        done = centre.run(f"s3://{out}", "--workers", "0")
    finally:
        proxy.fails, proxy.silent = lambda number: False, False
    assert proxy.num_failed > (2 if silent else 10)
    assert done.returncode == 1, done.stderr
    centre.assert_same(out, tmp_path / "got")


def test_a_store_that_goes_away_breaks_the_run_off_and_it_resumes(
    centre: Centre, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fsspec.filesystem("s3")
    seen = []

    def gone(number: int) -> bool:
        """From the first staged file on nothing is answered."""
        return bool(seen)

    plain = http.server.BaseHTTPRequestHandler.parse_request

    def watch(self: http.server.BaseHTTPRequestHandler) -> bool:
        parsed = plain(self)
        if "/away/_batchser/work/staged" in getattr(self, "path", ""):
            seen.append(1)
        return parsed

    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "parse_request", watch)
    proxy.fails = gone
    try:
        done = centre.run("s3://results/away", "--workers", "0")
    finally:
        proxy.fails = lambda number: False
    assert done.returncode == 3, done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "finished parts are kept: mend that and repeat the same command" in sentence
    assert SECRET not in done.stderr
    store.invalidate_cache()
    assert not store.exists("results/away/calls")
    if store.exists("results/away/_batchser/lock"):
        store.rm("results/away/_batchser/lock")  # or wait a minute for it
    again = centre.run("s3://results/away", "--workers", "0", "--json-summary", str(tmp_path / "s.json"))
    assert again.returncode == 1, again.stderr
    assert json.loads((tmp_path / "s.json").read_text())["recordings_reused"] > 0
    centre.assert_same("results/away", tmp_path / "got")


def test_a_store_that_nobody_answers_for_is_one_sentence(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    command = [Path(sys.executable).with_name("batchser"), "run", str(centre.folder), "--out", "s3://results/none"]
    done = subprocess.run([*command, "--workers", "0"], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: s3://results/none/_batchser/lock: cannot be used (")


# ---------------------------------------------------------------------------------------------------- the lease


@pytest.fixture
def store() -> RemoteStore:
    memory = fsspec.filesystem("memory")
    if memory.exists("/leased"):
        memory.rm("/leased", recursive=True)
    return RemoteStore("memory://leased")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are renewed, watched and given up in seconds."""
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    monkeypatch.setattr(lease, "_LOOK_S", 0.1)
    monkeypatch.setattr(lease, "DEAD_S", 3.0)


def test_a_lease_is_one_holder_s_until_it_is_released(store: RemoteStore, quick: None) -> None:
    first = Lease(store, "lock")
    until = time.monotonic() + 4.0
    while time.monotonic() < until:  # longer than one that is not renewed lasts
        with pytest.raises(ConfigError, match="another run is at work on this output; wait for it or stop it"):
            Lease(store, "lock")
    first.check()
    first.release()
    first.release()
    assert store.names("") == []
    Lease(store, "lock").release()


def test_a_dead_holder_s_lease_runs_out(store: RemoteStore, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(lease, "RENEW_S", 1e6)
        dead = Lease(store, "lock")
    second = Lease(store, "lock")
    with pytest.raises(SinkError, match="the lease on this output was lost"):
        dead.check()
    second.check()
    second.release()


def test_a_lease_that_cannot_be_renewed_is_lost(
    store: RemoteStore, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Lease(store, "lock")

    def gone(*_: object) -> None:
        raise ConnectionError("nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr(RemoteStore, "_opened", gone)
        time.sleep(2.0)
        with pytest.raises(SinkError, match="could not be renewed in time"):
            held.check()
    time.sleep(1.0)
    held.check()  # the store is back, and nobody has taken it meanwhile
    held.release()
