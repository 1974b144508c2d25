"""A lock in an object store: an object that its holder writes anew while it lives."""

from __future__ import annotations

import json
import threading
import time
import uuid
from typing import Final

from batchser.errors import ConfigError
from batchser.sink.files import SinkError
from batchser.sink.store import RemoteStore

#: A holder writes anew so often; one that has not for DEAD_S is dead. Nobody's clock is compared with another's.
RENEW_S: Final = 15.0
DEAD_S: Final = 60.0
_LOOK_S: Final = 2.0


class Lease:
    """Sole use of a place in a store until ``release``, or a minute after its holder's death.

    Whoever finds it held watches it: it changes, and somebody is at work, or it does not, and its holder is dead.

    Raises
    ------
    ConfigError : somebody else holds it
    SinkError : the store does not answer
    """

    def __init__(self, store: RemoteStore, name: str) -> None:
        self._store, self._name = store, name
        self._owner = uuid.uuid4().hex
        self._count = 0
        self._released = threading.Event()
        if not store.create(name, self._text()):
            self._wait_for_the_dead()
            store.remove(name)
            if not store.create(name, self._text()):
                raise ConfigError(f"{store.where()}: another run has just begun on this output; wait for it or stop it")
        self._renewed = time.monotonic()
        self._renewer = threading.Thread(target=self._renew, daemon=True)
        self._renewer.start()

    def check(self) -> None:
        """See that it is still held, before something is changed for good.

        Raises
        ------
        SinkError : it ran out, as the store could not be reached or this process slept, and may be another's now
        """
        if time.monotonic() - self._renewed > DEAD_S / 2 or not self._is_ours():
            raise SinkError(
                f"{self._store.where()}: the lease on this output was lost, as it could not be renewed in time; what "
                "is done is kept: repeat the same command"
            )

    def release(self) -> None:
        """Give the place back; a second time does nothing, and a store that does not answer is no matter any more."""
        if not self._released.is_set():
            self._released.set()
            self._renewer.join()
            try:
                if self._is_ours():
                    self._store.remove(self._name)
            except SinkError:
                return  # it runs out

    def _wait_for_the_dead(self) -> None:
        first = self._read()
        until = time.monotonic() + DEAD_S
        while time.monotonic() < until:
            time.sleep(_LOOK_S)
            found = self._read()
            if found is None:
                return
            if found != first:
                raise ConfigError(
                    f"{self._store.where()}: another run is at work on this output; wait for it or stop it"
                )

    def _renew(self) -> None:
        while not self._released.wait(RENEW_S):
            try:
                if self._is_ours():
                    began = time.monotonic()
                    self._count += 1
                    with self._store.placing(self._name) as temporary:
                        temporary.write_bytes(self._text())
                    self._renewed = began
            except Exception:  # noqa: S112  whatever the store raises: ``check`` tells when it matters
                continue

    def _is_ours(self) -> bool:
        found = self._read()
        try:
            return found is not None and json.loads(found)["owner"] == self._owner
        except (ValueError, KeyError, TypeError):
            return False

    def _text(self) -> bytes:
        return json.dumps({"owner": self._owner, "count": self._count}).encode()

    def _read(self) -> bytes | None:
        try:
            with self._store.open(self._name) as file:
                return file.read()
        except FileNotFoundError:
            return None
