"""Channels from the models of a server to the executor: in the same process, or over a socket.

tensorrt_llm holds the executor. ensemble is another process, so that tokenizing, decoding and sending take no
time of the interpreter that computes. A :class:`ChannelServer` in the first serves a :class:`RemoteChannel`
in the second; messages are JSON, one for each step of the scheduler, for any number of requests.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import socket
import stat
import struct
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from enginix.errors import MachineError, UsageError
from enginix.tables import load_table

LATER, FAILED = load_table("triton_errors")["later"], load_table("triton_errors")["failed"]
# struct timeval, seconds and microseconds: longest wait of the scheduler for a process that does not read.
STALLED = struct.pack("ll", 1, 0)
# Seconds from the start in which the executor's model may be loaded, and between two looks at it.
REACHED = 10.0
RETRY = 0.05
# Bytes of a message; a prompt of a million tokens takes a tenth of it.
LARGEST = 1 << 26
# Seconds that one step of the scheduler may take: the longest prompt on a slow processor takes minutes.
LONGEST_STEP = 600.0
# sockaddr_un(7): 108 bytes, the last one 0.
LONGEST_PATH = 107


class ChannelEvent(NamedTuple):
    """One step of one generation, or the reason of its failure.

    Attributes:
        number: number of the generation.
        token: the new token; ``None`` without a new token.
        logprob: natural logarithm of the token's probability, if requested.
        finish: on the last event ``stop``, ``length``, ``cancelled``, ``error``, ``refused`` (the request
            cannot be served) or ``full`` (the request cannot be served now).
        error: the reason, for the last three.
    """

    number: str
    token: int | None
    logprob: float | None
    finish: str | None
    error: str | None = None


class Channel(Protocol):
    """A channel to the executor."""

    def add(self, number: str, order: Mapping[str, Any], client: str) -> None:
        """Start a generation; its results, also a refusal, come as events.

        Args:
            number: unique, unpredictable number.
            order: fields of the scheduler's ``Request``, except its id; only values that JSON has.
            client: the client's own name for the generation, for ``stop``; may be empty.
        """

    def cancel(self, number: str) -> None:
        """End a generation of this channel."""

    def receive(self, timeout: float) -> list[ChannelEvent] | None:
        """Wait for events, at most ``timeout`` seconds; returns all pending ones, ``None`` once closed."""

    def close(self) -> None:
        """End the running generations and wake :meth:`receive`."""


class Generations:
    """The generations of all channels in the executor.

    Args:
        scheduler: the reference executor's scheduler.
        request: makes the scheduler's request from an order's fields.
        capacity: largest number of generations, running and waiting; 0 is no limit.
    """

    def __init__(self, scheduler: Any, request: Callable[..., Any], capacity: int = 0) -> None:
        self._scheduler, self._request, self._capacity = scheduler, request, capacity
        self._lock = threading.Lock()
        self._clients: dict[str, str] = {}
        # When the scheduler last did a step, or got work after it had none.
        self._moved = time.monotonic()
        # Channels with events in the scheduler's current step; used by the scheduler's thread alone.
        self._heard: set[ServedChannel] = set()
        scheduler.after_step = self._tell

    def add(self, number: str, order: Mapping[str, Any], client: str, channel: ServedChannel) -> None:
        """Start a generation of a channel."""
        with self._lock:
            full = self._capacity and len(self._clients) >= self._capacity
            if not full:
                if not self._clients:
                    self._moved = time.monotonic()
                self._clients[number] = client
        if full:
            reason = f"{self._capacity} requests are running or waiting already; {LATER}"
            channel.tell([ChannelEvent(number, None, None, "full", reason)])
            return
        step = channel.step

        def heard(event: Any) -> None:
            if event.finish is not None:
                self._forget(number)
            step.append(ChannelEvent(number, event.token, event.logprob, event.finish, event.error))
            self._heard.add(channel)

        try:
            sets = {"prompt": tuple(order["prompt"]), "end_ids": frozenset(order["end_ids"])}
            self._scheduler.add(self._request(id=number, **{**order, **sets}), heard)
        except Exception as e:  # a request must never be left without an answer
            self._forget(number)
            refused = isinstance(e, UsageError)
            reason = str(e) if refused else f"{type(e).__name__}: {e}"
            channel.tell([ChannelEvent(number, None, None, "refused" if refused else "error", reason)])

    def cancel(self, number: str) -> None:
        """Ask the scheduler to end a generation."""
        self._scheduler.cancel(number)

    def stop(self, client: str) -> None:
        """End all generations with that name of a client's."""
        with self._lock:
            numbers = [number for number, name in self._clients.items() if client and name == client]
        for number in numbers:
            self._scheduler.cancel(number)

    def is_stuck(self) -> bool:
        """Tell whether requests are under way, and the scheduler has not ended a step for long."""
        with self._lock:
            return bool(self._clients) and time.monotonic() - self._moved > LONGEST_STEP

    def close(self) -> None:
        """Close the scheduler, which ends all generations."""
        self._scheduler.close()

    def _forget(self, number: str) -> None:
        with self._lock:
            self._clients.pop(number, None)

    def _tell(self) -> None:
        """Send one message for each step and channel: each wakes a thread, which takes the interpreter."""
        self._moved = time.monotonic()
        for channel in self._heard:
            channel.tell(channel.step)
            channel.step.clear()
        self._heard.clear()


class ServedChannel(ABC):
    """One channel's end in the executor's process.

    Attributes:
        step: events of the scheduler's current step.
    """

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._numbers: set[str] = set()
        self.step: list[ChannelEvent] = []

    def add(self, number: str, order: Mapping[str, Any], client: str) -> None:
        """See :class:`Channel`."""
        self._numbers.add(number)
        self._generations.add(number, order, client, self)

    def cancel(self, number: str) -> None:
        """See :class:`Channel`."""
        if number in self._numbers:
            self._generations.cancel(number)

    def cancel_all(self) -> None:
        """End the running generations."""
        for number in list(self._numbers):
            self._generations.cancel(number)

    def tell(self, events: Sequence[ChannelEvent]) -> None:
        """Pass events on; the scheduler's thread calls it, too, and must not wait."""
        self._numbers.difference_update([e.number for e in events if e.finish is not None])
        self._hand_over(list(events))

    @abstractmethod
    def _hand_over(self, events: list[ChannelEvent]) -> None: ...


class LocalChannel(ServedChannel):
    """A channel within the executor's process."""

    def __init__(self, generations: Generations) -> None:
        super().__init__(generations)
        # None closes.
        self._events: queue.SimpleQueue[list[ChannelEvent] | None] = queue.SimpleQueue()
        self._closed = False

    def _hand_over(self, events: list[ChannelEvent]) -> None:
        self._events.put(events)

    def receive(self, timeout: float) -> list[ChannelEvent] | None:
        """See :class:`Channel`."""
        received: list[ChannelEvent] = []
        with contextlib.suppress(queue.Empty):
            events = None if self._closed else self._events.get(timeout=timeout)
            while events is not None:
                received += events
                events = self._events.get_nowait()
            # Events from before the end are still returned.
            self._closed = True
        return None if self._closed and not received else received

    def close(self) -> None:
        """See :class:`Channel`."""
        self.cancel_all()
        self._events.put(None)


class _PeerChannel(ServedChannel):
    """A channel of another process, at the executor's end of its connection."""

    def __init__(self, generations: Generations, accepted: socket.socket) -> None:
        super().__init__(generations)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, STALLED)
        self._connection = Connection(accepted.detach())
        self._sending = threading.RLock()

    def _hand_over(self, events: list[ChannelEvent]) -> None:
        # By the scheduler's thread: another would have to take the interpreter from it first. The socket
        # holds hundreds of messages; a process that does not read them is disconnected.
        message = json.dumps(events).encode()
        with self._sending:
            try:
                self._connection.send_bytes(message)
            except Exception:
                # This tells the other end, which forgets its generations.
                self.shut()

    def serve(self) -> None:
        """Serve the channel until the other process closes it, ends, or sends an invalid message."""
        with contextlib.suppress(Exception):
            while True:
                message = json.loads(self._connection.recv_bytes(LARGEST))
                if "cancel" in message:
                    self.cancel(message["cancel"])
                else:
                    self.add(message["add"], message["order"], message["client"])
        self.cancel_all()
        with self._sending:
            self._connection.close()

    def shut(self) -> None:
        """End the connection, from any thread."""
        with self._sending:
            _shut_connection(self._connection)


def socket_path() -> Path:
    """Return the path of the socket of a tritonserver's models: children of one process, with one TMPDIR.

    Raises:
        MachineError: TMPDIR is too long for a socket, or the directory belongs to another user.
    """
    directory = Path(tempfile.gettempdir()) / f"enginix-{os.getppid()}"
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    directory_stat = directory.lstat()
    if (
        not stat.S_ISDIR(directory_stat.st_mode)
        or directory_stat.st_uid != os.getuid()
        or directory_stat.st_mode & 0o077
    ):
        raise MachineError(
            "not a private directory of this user",
            where=str(directory),
            fix="remove it, or set TMPDIR to a directory of the server's own",
        )
    path = directory / "executor"
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise MachineError(
            f"too long for a socket ({LONGEST_PATH} bytes)",
            where=str(path),
            fix="set TMPDIR to a shorter one",
        )
    return path


class ChannelServer:
    """Serves channels to other processes of the same user.

    Args:
        generations: the generations of this process.
        path: path of the socket; a stale socket is replaced.
    """

    def __init__(self, generations: Generations, path: Path) -> None:
        self._generations, self._path = generations, path
        self._socket = socket.socket(socket.AF_UNIX)
        # Renamed into place, so that the path never exists without a listener.
        new = path.with_name(f".{os.getpid()}")
        new.unlink(missing_ok=True)
        self._socket.bind(str(new))
        self._socket.listen()
        self._inode = new.stat().st_ino
        new.rename(path)
        self._closing = threading.Event()
        self._peers: list[tuple[_PeerChannel, threading.Thread]] = []
        self._accepting = _start_thread("enginix-link", self._accept)

    def close(self) -> None:
        """Close all channels."""
        self._closing.set()
        with contextlib.suppress(OSError):
            # Wakes accept.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._socket.close()
        with contextlib.suppress(OSError):
            # A reloaded model may have put its own socket there meanwhile.
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
                self._path.parent.rmdir()
        for peer, thread in self._peers:
            peer.shut()
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
            except OSError:
                # A temporary failure, such as too many open files.
                if self._closing.wait(RETRY):
                    return
                continue
            peer = _PeerChannel(self._generations, accepted)
            self._peers = [(p, thread) for p, thread in self._peers if thread.is_alive()]
            self._peers.append((peer, _start_thread("enginix-link", peer.serve)))


class RemoteChannel:
    """A channel to the executor of another process; it connects when that process is ready.

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
        """See :class:`Channel`."""
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
        """See :class:`Channel`."""
        with self._lock:
            if self._connection is not None and number in self._numbers:
                self._send(self._connection, json.dumps({"cancel": number}).encode())

    def receive(self, timeout: float) -> list[ChannelEvent] | None:
        """See :class:`Channel`."""
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
        """See :class:`Channel`."""
        self._closed.set()
        with self._lock:
            if self._connection is not None:
                _shut_connection(self._connection)

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


def _shut_connection(connection: Connection) -> None:
    """End both directions, which wakes the reader; the reader closes the connection."""
    with contextlib.suppress(OSError):  # closed already
        duplicate = socket.socket(fileno=os.dup(connection.fileno()))
        duplicate.shutdown(socket.SHUT_RDWR)
        duplicate.close()


def _start_thread(name: str, target: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    thread.start()
    return thread
