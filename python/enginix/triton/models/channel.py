"""Channels from the models of a server to the executor: in the same process, or over a socket.

tensorrt_llm holds the executor. ensemble is another process, so that tokenizing, decoding and sending take no
time of the interpreter that computes. A :class:`~enginix.triton.models.channel_server.ChannelServer` in the
first serves a :class:`~enginix.triton.models.remote_channel.RemoteChannel` in the second; messages are JSON,
one for each step of the scheduler, for any number of requests.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from enginix.errors import MachineError
from enginix.tables import load_table

LATER, FAILED = load_table("triton_errors")["later"], load_table("triton_errors")["failed"]
# Seconds between two tries to reach the other end.
RETRY = 0.05
# Bytes of a message; a prompt of a million tokens takes a tenth of it.
LARGEST = 1 << 26
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
            where=directory,
            fix="remove it, or set TMPDIR to a directory of the server's own",
        )
    path = directory / "executor"
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise MachineError(
            f"too long for a socket ({LONGEST_PATH} bytes)", where=path, fix="set TMPDIR to a shorter one"
        )
    return path


def shut_connection(connection: Connection) -> None:
    """End both directions, which wakes the reader; the reader closes the connection."""
    with contextlib.suppress(OSError):  # closed already
        duplicate = socket.socket(fileno=os.dup(connection.fileno()))
        duplicate.shutdown(socket.SHUT_RDWR)
        duplicate.close()
