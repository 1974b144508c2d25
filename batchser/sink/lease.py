"""A lock in an object store: an object that says who holds a place, and until when."""

from __future__ import annotations

import json
import threading
import time
import uuid
from typing import Any, Final

from batchser.errors import ConfigError
from batchser.sink.files import SinkError
from batchser.sink.store import RemoteStore

#: A holder that dies is in the way for so long at most.
LEASE_S: Final = 300.0
_RENEW_S: Final = 60.0


class Lease:
    """Sole use of a place in a store until ``release``, or so long after its holder's death.

    While it is held, a thread renews it. Between machines it goes by their clocks, which may differ by less than
    LEASE_S.

    Raises
    ------
    ConfigError : somebody else holds it
    SinkError : the store does not answer
    """

    def __init__(self, store: RemoteStore, name: str) -> None:
        self._store, self._name = store, name
        self._owner = uuid.uuid4().hex
        self._released = threading.Event()
        if not store.create(name, self._text()):
            held = self._read()
            if held is not None and held["until"] > time.time():
                raise ConfigError(
                    f"{store.where()}: another run is at work on this output; wait for it or stop it (if it died, "
                    f"its lease ends in {held['until'] - time.time():.0f} s)"
                )
            store.remove(name)  # whoever held it is dead
            if not store.create(name, self._text()):
                raise ConfigError(f"{store.where()}: another run has just begun on this output; wait for it or stop it")
        self._renewer = threading.Thread(target=self._renew, daemon=True)
        self._renewer.start()

    def check(self) -> None:
        """See that it is still held, before something is changed for good.

        Raises
        ------
        SinkError : it ran out, as the store could not be reached, and somebody else holds the place now
        """
        held = self._read()
        if held is None or held["owner"] != self._owner:
            raise SinkError(
                f"{self._store.where()}: the lease on this output was lost, as the store could not be reached in time; "
                "what is done is kept: repeat the same command"
            )

    def release(self) -> None:
        """Give the place back; a second time does nothing."""
        if not self._released.is_set():
            self._released.set()
            self._renewer.join()
            held = self._read()
            if held is not None and held["owner"] == self._owner:
                self._store.remove(self._name)

    def _renew(self) -> None:
        while not self._released.wait(_RENEW_S):
            try:
                self.check()
                with self._store.placing(self._name) as temporary:
                    temporary.write_bytes(self._text())
            except SinkError:
                continue  # ``check`` tells when it matters

    def _text(self) -> bytes:
        return json.dumps({"owner": self._owner, "until": time.time() + LEASE_S}).encode()

    def _read(self) -> dict[str, Any] | None:
        try:
            with self._store.open(self._name) as file:
                held: dict[str, Any] = json.load(file)
        except (FileNotFoundError, ValueError):
            return None
        return held
