"""Output of commands: results on standard output, progress on standard error, JSON for machines."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from enginix.credentials import redact_secrets
from enginix.errors import EnginixError, UnexpectedError


def print_message(text: str) -> None:
    """Print a line of progress for people on standard error."""
    print(redact_secrets(text), file=sys.stderr, flush=True)


def print_result(value: Any, text: str, *, as_json: bool) -> None:
    """Print a command's result on standard output: ``text``, or ``value`` as JSON with ``--json``."""
    print(redact_secrets(json.dumps(value, ensure_ascii=False) if as_json else text), flush=True)


def report_error(e: Exception) -> int:
    """Print on standard error why a command failed; return its exit code.

    Any other exception than ``EnginixError`` is a bug; ``ENGINIX_TRACEBACK=1`` prints its traceback.
    """
    if not isinstance(e, EnginixError) and os.environ.get("ENGINIX_TRACEBACK"):
        import traceback

        traceback.print_exception(e)
    error = explain_error(e)
    print_message(f"error: {error}")
    return error.exit_code


def explain_error(e: Exception) -> EnginixError:
    """Return the error that users see: itself, or a bug with what to do about it."""
    if isinstance(e, EnginixError):
        return e
    return UnexpectedError(
        f"unexpected {type(e).__name__}: {e}", fix="run again with ENGINIX_TRACEBACK=1 and report it"
    )


def format_bytes(n: int) -> str:
    """Return a size with its unit: ``1536`` → ``1.5 KiB``."""
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


class Heartbeat:
    """Prints at most one line every ``interval`` seconds, so that a log neither stalls nor floods."""

    def __init__(self, interval: float = 60.0) -> None:
        self.interval = interval
        self._last = time.monotonic()

    def beat(self, text: str) -> None:
        now = time.monotonic()
        if now - self._last >= self.interval:
            self._last = now
            print_message(text)
