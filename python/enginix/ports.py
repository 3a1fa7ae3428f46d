"""TCP ports: free ones, and the holder of a taken one."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import random
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from enginix.errors import MachineError, UsageError

LOOPBACK = ("127.0.0.1", "::1")
# Ports for 0 are sought here first: below the kernel's ip_local_port_range, so that no outgoing connection
# takes one between its choice and the start of its server.
QUIET_PORTS = range(12000, 32000)


def choose_loopback_port() -> int:
    """Return a port of loopback that is free now."""
    return reserve_ports(LOOPBACK[0], [("", 0)])[0]


def reachable_address(host: str) -> str:
    """Return the address at which a server that listens on ``host`` is reached from this machine."""
    address = ipaddress.ip_address(host)
    if not address.is_unspecified:
        return host
    # Triton's HTTP listener at :: takes no IPv4 where the kernel's bindv6only is set.
    return LOOPBACK[1] if address.version == 6 else LOOPBACK[0]


def is_loopback(host: str) -> bool:
    """Tell whether a server that listens on ``host`` is reached from this machine only."""
    return ipaddress.ip_address(host).is_loopback


def is_loopback_host(host: str) -> bool:
    """Tell whether an address, or a name, is one of this machine only; other names may be anything."""
    try:
        return is_loopback(host)
    except ValueError:
        return host == "localhost"


def explain_open_address(host: str, server: str) -> str | None:
    """Return the warning of a server that asks for no key, where others than this machine reach it."""
    if is_loopback_host(host):
        return None
    return (
        f"{host} is reachable from outside; {server} asks for no key and has no TLS: "
        "put enginix gateway in front"
    )


def address_family(host: str) -> socket.AddressFamily:
    """Return the family of an IP address.

    Raises:
        UsageError: not an IP address; a name would leave open which address is bound.
    """
    try:
        version = ipaddress.ip_address(host).version
    except ValueError as e:
        raise UsageError(
            f"{host!r} is not an IP address", where="--host", fix="127.0.0.1 for this machine only"
        ) from e
    return socket.AF_INET6 if version == 6 else socket.AF_INET


def reserve_ports(host: str, ports: Sequence[tuple[str, int]]) -> list[int]:
    """Check that ports can be bound and choose a free one for each 0; hold all together, then release them.

    Args:
        ports: (name of the option, number).

    Returns:
        The numbers, in order.

    Raises:
        UsageError: a number out of range, or one given twice.
        MachineError: a port that is taken, with its holder where it can be found.
    """
    numbers: list[int] = []
    with contextlib.ExitStack() as listeners:
        for name, port in ports:
            if not 0 <= port <= 65535:
                raise UsageError(f"{port} is not a port", where=name, fix="0 (any free one) to 65535")
            if port and port in numbers:
                raise UsageError(f"port {port} is given twice", where=name, fix="three different ports")
            listener = listeners.enter_context(open_listener(host, port, name))
            numbers.append(int(listener.getsockname()[1]))
    return numbers


@contextlib.contextmanager
def open_listener(host: str, port: int, name: str) -> Iterator[socket.socket]:
    """Listen on a port, a free one for 0, until the block ends.

    Args:
        name: of the option.

    Raises:
        MachineError: the port is taken, with its holder where it can be found.
    """
    with socket.socket(address_family(host), socket.SOCK_STREAM) as listener:
        # As Triton's own listeners: connections of an earlier server that linger do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            if port or not _bind_quiet_port(listener, host):
                listener.bind((host, port))
            # Two sockets may bind one port by SO_REUSEADDR, and one of them listen.
            listener.listen()
        except OSError as e:
            raise _bind_error(host, port, name, e) from e
        yield listener


def _bind_quiet_port(listener: socket.socket, host: str) -> bool:
    """Bind a listener to a free port of ``QUIET_PORTS``; False where none of some is free."""
    for port in random.SystemRandom().sample(QUIET_PORTS, 20):
        with contextlib.suppress(OSError):
            listener.bind((host, port))
            return True
    return False


def _bind_error(host: str, port: int, name: str, error: OSError) -> MachineError:
    if error.errno != errno.EADDRINUSE:
        return MachineError(f"cannot bind: {error.strerror}", where=f"{host}:{port}", fix=f"another {name}")
    port_holder = find_port_holder(port)
    return MachineError(
        f"port {port} is in use{f' by {port_holder}' if port_holder else ''}",
        where=name,
        fix=f"stop it, or choose another port with {name} (0 takes any free one)",
    )


def find_port_holder(port: int) -> str | None:
    """Return ``<command> (process <id>)`` of a port's listener; None if this user may not see it."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _has_socket(process, inodes):
            with contextlib.suppress(OSError):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return None


def is_port_of(processes: Iterable[int], port: int) -> bool:
    """Tell whether one of some processes listens on a port."""
    inodes = _listening_inodes(port)
    return bool(inodes) and any(_has_socket(Path(f"/proc/{pid}"), inodes) for pid in processes)


def _listening_inodes(port: int) -> set[str]:
    """Return the inodes of the sockets that listen on a port (proc(5), /proc/net/tcp; 0A is LISTEN)."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (Path("/proc/net") / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                    inodes.add(fields[9])
    return inodes


def _has_socket(process: Path, inodes: set[str]) -> bool:
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor))
                if match and match[1] in inodes:
                    return True
    return False
