"""The service manager's readiness protocol (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket


def notify_systemd(state: str) -> None:
    """Send ``READY=1`` or ``STOPPING=1`` to systemd, if systemd started this process."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or address[0] not in "/@":
        return
    # A leading @ stands for the abstract namespace's null byte.
    target = "\0" + address[1:] if address[0] == "@" else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(state.encode(), target)
