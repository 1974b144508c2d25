"""Serving the dashboard: what is wrong is told before it starts; then waitress answers, on this machine unless told."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import waitress

from batchser.bundle import find_bundle
from batchser.dashboard.app import make_app
from batchser.dashboard.labels import open_labels
from batchser.dashboard.options import Options, open_now
from batchser.dashboard.uploads import Uploads
from batchser.errors import BatchserError, ConfigError
from batchser.settings import Headerless, LimitSettings, RunSettings

#: The names of this machine.
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_THREADS: Final = 8
_WARM_S: Final = 5.0  # the first page, which is asked for at once, need not share the machine with the model's loading


@dataclass(frozen=True, slots=True)
class Address:
    """Where to answer."""

    host: str
    port: int

    @classmethod
    def parsed(cls, text: str) -> Address:
        """Read ``HOST:PORT``.

        Raises
        ------
        ConfigError : it is none
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not int(port) < 2**16:
            raise ConfigError(f"--listen {text}: expected HOST:PORT, such as 127.0.0.1:8050")
        return cls(host.strip("[]"), int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether this machine alone can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def serve(
    *,
    out: str,
    segments: str | None,
    zone: ZoneInfo,
    search: tuple[Path, ...],
    listen_limits: LimitSettings | None,
    headerless: Headerless,
    labels: Path,
    speaker_column: str | None,
    model: str,
    settings: RunSettings,
    address: Address,
    host_names: Sequence[str],
    most_upload_bytes: int,
    say: Callable[[str], None],
) -> None:
    """Answer until interrupted.

    Raises
    ------
    ConfigError : no results, an unknown model or column, no such folder
    BatchserError : the address is taken
    """
    named = [address.host] if not address.is_loopback else []
    hosts = (*LOOPBACK, *named, *host_names)
    options = Options(out, segments, zone, search, listen_limits, headerless, speaker_column, hosts, most_upload_bytes)
    results = open_now(options)
    if speaker_column is not None and speaker_column not in results.own_columns:
        known = ", ".join(results.own_columns) or "none"
        raise ConfigError(f"--speaker-column {speaker_column}: the manifest had no such column; there are: {known}")
    uploads = Uploads(find_bundle(model, search), settings, headerless)
    app = make_app(options, uploads, open_labels(labels))
    try:
        server = waitress.create_server(
            app, host=address.host, port=address.port, threads=_THREADS, ident=None,
            max_request_body_size=2**33,  # the application tells its own limit in its own words
        )  # fmt: skip
    except OSError as error:
        raise BatchserError(
            f"--listen {address.host}:{address.port}: cannot answer there ({error.strerror})"
        ) from error
    warming = threading.Timer(_WARM_S, uploads.warm)
    warming.daemon = True
    warming.start()
    say(f"http://{address.host}:{server.effective_port}/ shows {out}; Ctrl-C ends it")
    if not address.is_loopback:
        say("it has no passwords: whoever reaches it sees and hears everything; put a proxy with sign-on before it")
    try:
        server.run()
    finally:
        warming.cancel()
        server.close()
        uploads.close()
