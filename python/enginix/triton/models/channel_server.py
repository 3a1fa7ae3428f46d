"""The executor's end of channels to other processes: a socket that serves them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from enginix.triton.models.channel import LARGEST, RETRY, ChannelEvent, shut_connection
from enginix.triton.models.served_channels import Generations, ServedChannel

# struct timeval, seconds and microseconds: longest wait of the scheduler for a process that does not read.
STALLED = struct.pack("ll", 1, 0)


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
            shut_connection(self._connection)


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
        self._accepting = _start_thread(self._accept)

    def close(self) -> None:
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
            self._peers.append((peer, _start_thread(peer.serve)))


def _start_thread(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, name="enginix-link", daemon=True)
    thread.start()
    return thread
