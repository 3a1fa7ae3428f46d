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
# struct timeval, seconds and microseconds: how long the scheduler waits for a process that reads nothing.
STALLED = struct.pack("ll", 1, 0)
# Seconds from the start in which the executor's model may be loaded, and between two looks at it.
REACHED = 10.0
RETRY = 0.05
# Bytes of a message; a prompt of a million tokens takes a tenth of it.
LARGEST = 1 << 26
# sockaddr_un(7): 108 bytes, the last one 0.
LONGEST_PATH = 107


class ChannelEvent(NamedTuple):
    """One step of one generation, or why there is none.

    Attributes:
        number: of the generation.
        token: the new one; ``None`` where there is none.
        logprob: natural logarithm of its probability, if asked for.
        finish: on the last event ``stop``, ``length``, ``cancelled``, ``error``, ``refused`` (what was asked
            for cannot be done) or ``full`` (not now).
        error: why, with the last three.
    """

    number: str
    token: int | None
    logprob: float | None
    finish: str | None
    error: str | None = None


class Channel(Protocol):
    """A way to the executor."""

    def add(self, number: str, order: Mapping[str, Any], client: str) -> None:
        """Starts a generation; what becomes of it, a refusal too, is told by events.

        Args:
            number: unique, and not to be guessed.
            order: fields of the scheduler's ``Request``, but for its id; nothing that JSON lacks.
            client: the client's own name for it, by which :meth:`stop` finds it; may be empty.
        """

    def cancel(self, number: str) -> None:
        """Ends a generation of this channel."""

    def receive(self, timeout: float) -> list[ChannelEvent] | None:
        """Waits for events, at most ``timeout`` seconds; all that are there, ``None`` once it is closed."""

    def close(self) -> None:
        """Ends what is under way and wakes :meth:`receive`."""


class Generations:
    """What is under way in the executor, of all channels.

    Args:
        scheduler: of the reference executor.
        request: makes its request of an order's fields.
        capacity: generations at once, running and waiting; 0 is no limit.
    """

    def __init__(self, scheduler: Any, request: Callable[..., Any], capacity: int = 0) -> None:
        self._scheduler, self._request, self._capacity = scheduler, request, capacity
        self._lock = threading.Lock()
        self._clients: dict[str, str] = {}
        # Those that have heard something in the scheduler's present step; its thread's own.
        self._heard: set[ServedChannel] = set()
        scheduler.after_step = self._tell

    def add(self, number: str, order: Mapping[str, Any], client: str, channel: ServedChannel) -> None:
        """Starts a generation of a channel."""
        with self._lock:
            full = self._capacity and len(self._clients) >= self._capacity
            if not full:
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
        """Asks for a generation to end."""
        self._scheduler.cancel(number)

    def stop(self, client: str) -> None:
        """Ends all that a client gave that name."""
        with self._lock:
            numbers = [number for number, name in self._clients.items() if client and name == client]
        for number in numbers:
            self._scheduler.cancel(number)

    def close(self) -> None:
        """Ends everything."""
        self._scheduler.close()

    def _forget(self, number: str) -> None:
        with self._lock:
            self._clients.pop(number, None)

    def _tell(self) -> None:
        """One message a step and channel: each wakes a thread, which takes the executor's interpreter."""
        for channel in self._heard:
            channel.tell(channel.step)
            channel.step.clear()
        self._heard.clear()


class ServedChannel(ABC):
    """One channel's end in the executor's process.

    Attributes:
        step: what it is to hear of the scheduler's present step.
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
        """Ends what is under way."""
        for number in list(self._numbers):
            self._generations.cancel(number)

    def tell(self, events: Sequence[ChannelEvent]) -> None:
        """Hands events over; called by the scheduler's thread, too, which must not wait."""
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
            # What came before the end is still told.
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
        # holds hundreds of messages, and whoever leaves them there is cut off.
        message = json.dumps(events).encode()
        with self._sending:
            try:
                self._connection.send_bytes(message)
            except Exception:
                # The other end is told by that, and forgets what it asked for.
                self.shut()

    def serve(self) -> None:
        """Until the other process has closed it, has ended, or says what no model says."""
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
        """Ends the connection, from any thread."""
        with self._sending:
            _shut_connection(self._connection)


def socket_path() -> Path:
    """Where the models of one tritonserver meet: they are children of one process, with one TMPDIR.

    Raises:
        MachineError: TMPDIR is too long for a socket, or somebody else has the place.
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
        generations: of this process.
        path: of the socket; a stale one is replaced.
    """

    def __init__(self, generations: Generations, path: Path) -> None:
        self._generations, self._path = generations, path
        self._socket = socket.socket(socket.AF_UNIX)
        # Renamed into place, so that it is never there without somebody who listens.
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
        """Closes all channels."""
        self._closing.set()
        with contextlib.suppress(OSError):
            # Wakes accept.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._socket.close()
        with contextlib.suppress(OSError):
            # A model that is loaded anew has put its own there meanwhile.
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
                # Too many open files, for instance, which passes.
                if self._closing.wait(RETRY):
                    return
                continue
            peer = _PeerChannel(self._generations, accepted)
            self._peers = [(p, thread) for p, thread in self._peers if thread.is_alive()]
            self._peers.append((peer, _start_thread("enginix-link", peer.serve)))


class RemoteChannel:
    """A channel to the executor of another process; connects when that process is there.

    Args:
        path: of its socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Sending, and what is under way.
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
        # Once it was there, it is being loaded anew or dead: that is not waited for.
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
            # What was refused meanwhile comes before any waiting.
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
        """What becomes of everything that was under way; where this end has closed it, nobody asks."""
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
        # Where it is broken, receive finds out.
        with contextlib.suppress(OSError):
            connection.send_bytes(message)


def _shut_connection(connection: Connection) -> None:
    """Ends both directions, and wakes whoever reads; the reader closes it."""
    with contextlib.suppress(OSError):  # closed already
        duplicate = socket.socket(fileno=os.dup(connection.fileno()))
        duplicate.shutdown(socket.SHUT_RDWR)
        duplicate.close()


def _start_thread(name: str, target: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    thread.start()
    return thread
