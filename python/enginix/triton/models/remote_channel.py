"""The other end of a channel: in the process of ``ensemble``."""

from __future__ import annotations

import contextlib
import json
import queue
import select
import socket
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from enginix.triton.models.channel import LARGEST, LATER, RETRY, ChannelEvent, shut_connection

# Seconds from the start in which the executor's model may be loaded.
REACHED = 10.0


class RemoteChannel:
    """A :class:`Channel` to the executor of another process; it connects when that process is ready.

    Args:
        path: path of its socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Guards sending, and the running generations.
        self._lock = threading.Lock()
        self._numbers: set[str] = set()
        self._connection: Connection | None = None
        self._connected = threading.Event()
        self._poll = select.poll()
        self._reached, self._begun = False, time.monotonic()
        self._closed = threading.Event()
        self._lost: queue.SimpleQueue[ChannelEvent] = queue.SimpleQueue()

    def add(self, number: str, order: Mapping[str, Any], client: str) -> None:
        message = json.dumps({"add": number, "order": dict(order), "client": client}).encode()
        if len(message) > LARGEST:
            reason = f"{len(message)} bytes of tokens; at most {LARGEST} are taken"
            self._lost.put(ChannelEvent(number, None, None, "refused", reason))
            return
        # After a first connection a missing process is being reloaded or dead: do not wait for it.
        waits = 0.0 if self._reached else self._begun + REACHED - time.monotonic()
        self._connected.wait(max(RETRY, waits))
        with self._lock:
            if self._connection is None:
                reason = f"tensorrt_llm, which computes, is not reached ({self._path}); {LATER}"
                self._lost.put(ChannelEvent(number, None, None, "full", reason))
                return
            self._numbers.add(number)
            self._send(self._connection, message)

    def cancel(self, number: str) -> None:
        with self._lock:
            if self._connection is not None and number in self._numbers:
                self._send(self._connection, json.dumps({"cancel": number}).encode())

    def receive(self, timeout: float) -> list[ChannelEvent] | None:
        received: list[ChannelEvent] = []
        with contextlib.suppress(queue.Empty):
            while True:
                received.append(self._lost.get_nowait())
        if received or self._closed.is_set():
            return received or None
        connection = self._connection
        if connection is None:
            if not self._connect():
                self._closed.wait(RETRY)
            # No wait: the next call returns refusals from meanwhile.
            return []
        broken = False
        try:
            while self._poll.poll(timeout * 1000):
                received += [ChannelEvent(*event) for event in json.loads(connection.recv_bytes())]
                timeout = 0
        except (EOFError, OSError, ValueError):
            broken = True
        ended = {event.number for event in received if event.finish is not None}
        if ended:
            with self._lock:
                self._numbers -= ended
        return received + self._broken(connection) if broken else received

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            if self._connection is not None:
                shut_connection(self._connection)

    def _connect(self) -> bool:
        opened = socket.socket(socket.AF_UNIX)
        try:
            opened.connect(str(self._path))
        except OSError:
            opened.close()
            return False
        with self._lock:
            if self._closed.is_set():
                opened.close()
                return False
            self._connection = Connection(opened.detach())
            self._poll = select.poll()
            self._poll.register(self._connection.fileno(), select.POLLIN)
            self._reached = True
            self._connected.set()
            return True

    def _broken(self, connection: Connection) -> list[ChannelEvent]:
        """Return failure events for all running generations; empty if this end closed the channel."""
        with self._lock:
            self._connected.clear()
            self._connection = None
            lost, self._numbers = self._numbers, set()
            connection.close()
        reason = f"tensorrt_llm, which computes, is not reached any more; {LATER}"
        return [
            ChannelEvent(number, None, None, "error", reason) for number in lost if not self._closed.is_set()
        ]

    @staticmethod
    def _send(connection: Connection, message: bytes) -> None:
        # receive detects a broken connection.
        with contextlib.suppress(OSError):
            connection.send_bytes(message)
