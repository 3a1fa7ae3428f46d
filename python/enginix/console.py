"""Output of commands: results on standard output, progress on standard error, JSON for machines."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from enginix.credentials import redact_secrets
from enginix.errors import EnginixError, MachineError, UnexpectedError

# First words of messages: bold red, yellow, cyan, green.
COLOURS = {"error:": "1;31", "warning:": "33", "note:": "36", "next:": "32"}
FOLDED_LINES = 20  # of a library's output that are shown where it fails


class _Output:
    """What commands share: whether they are quiet, and the line that is drawn again and again."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.is_quiet = self.is_json = False
        self.live_line = ""
        self.last = time.monotonic()
        # Standard error, while libraries' own is folded away.
        self.messages: TextIO | None = None
        self.result_extras: Callable[[], dict[str, Any]] | None = None


_output = _Output()


def set_style(*, quiet: bool, as_json: bool) -> None:
    """Leave out all messages but errors, and print results as JSON, from now on."""
    _output.is_quiet, _output.is_json = quiet, as_json


def add_to_results(extras: Callable[[], dict[str, Any]] | None) -> None:
    """Add entries to every JSON result that is an object, from now on; None for no more."""
    _output.result_extras = extras


def last_output() -> float:
    """Return when the last line was printed, by the clock of ``time.monotonic``."""
    return _output.last


def show_live_line(text: str) -> None:
    """Draw one line on the terminal of standard error, in place of the one before; empty removes it."""
    with _output.lock:
        if _output.is_quiet or text == _output.live_line:
            return
        stream = _output.messages or sys.stderr
        columns = _measure_width(stream)
        short = text if len(text) < columns else f"{text[: max(columns - 2, 1)]}…"
        stream.write(f"\r\x1b[K{redact_secrets(short)}")
        stream.flush()
        _output.live_line = text


@contextlib.contextmanager
def show_waiting(what: str) -> Iterator[None]:
    """Draw ``what`` with its seconds on the terminal until the block ends."""
    ended, begun = threading.Event(), time.monotonic()

    def draw() -> None:
        while not ended.wait(1):
            show_live_line(f"{what}: {format_duration(time.monotonic() - begun)}")

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        show_live_line("")


def find_table_width() -> int | None:
    """Return the columns that a table may take: the terminal's, or $COLUMNS; None in a file or pipe."""
    if not os.environ.get("COLUMNS", "").isdigit() and not sys.stdout.isatty():
        return None
    return _measure_width(sys.stdout) if sys.stdout.isatty() else int(os.environ["COLUMNS"])


def find_help_width() -> int:
    """Return the columns of help: the terminal's, or $COLUMNS; 80 in a file or pipe."""
    return find_table_width() or 80


def wrap_line(line: str, indent: int, width: int | None = None) -> str:
    """Break a line, its further lines indented, at a width: the terminal's, none in a file or pipe."""
    width = width or find_table_width()
    if width is None or len(line) <= width:
        return line
    import textwrap

    return textwrap.fill(
        line,
        max(width, indent + 20),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _measure_width(stream: TextIO) -> int:
    columns = 0  # as of a terminal without a size
    with contextlib.suppress(OSError, ValueError):
        columns = os.get_terminal_size(stream.fileno()).columns
    return columns or shutil.get_terminal_size().columns


def _colour_prefix(text: str, stream: TextIO) -> str:
    """Colour the first word of a message on a terminal (https://no-color.org)."""
    prefix = text.partition(" ")[0]
    colour = COLOURS.get(prefix)
    if colour is None or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{colour}m{prefix}\x1b[0m{text[len(prefix) :]}" if is_terminal(stream) else text


def is_terminal(stream: TextIO) -> bool:
    """Tell whether a person may watch a stream. A Nix build has a terminal, of which its log keeps all."""
    return stream.isatty() and "NIX_LOG_FD" not in os.environ


def is_watched() -> bool:
    """Tell whether a person reads the messages: on a terminal, and not quiet."""
    return not _output.is_quiet and is_terminal(_output.messages or sys.stderr)


def _print_line(text: str, stream: TextIO) -> None:
    with _output.lock:
        show_live_line("")
        print(_colour_prefix(text, stream), file=stream, flush=True)
        _output.last = time.monotonic()


def print_message(text: str) -> None:
    """Print a line of progress for people on standard error; nothing where the command is quiet."""
    if not _output.is_quiet:
        _print_line(redact_secrets(text), _output.messages or sys.stderr)


def print_notes(notes: Iterable[str | None], word: str = "note") -> None:
    """Print notes for people, a line each; nothing for ``None``."""
    for note in notes:
        if note is not None:
            print_message(f"{word}: {note}")


def print_result(value: Any, text: str) -> None:
    """Print a command's result on standard output: ``text``, or ``value`` as JSON with ``--json``."""
    if _output.is_json and isinstance(value, dict) and _output.result_extras is not None:
        value = {**value, **_output.result_extras()}
    shown = json.dumps(value, ensure_ascii=False) if _output.is_json else text
    _print_line(redact_secrets(shown), sys.stdout)


def print_piece(text: str) -> None:
    """Print a piece of an answer on standard output as it comes; ``--json`` has it in its one object."""
    if not _output.is_json:
        with _output.lock:
            show_live_line("")
            print(text, end="", flush=True)


@contextlib.contextmanager
def fold_output(of: str) -> Iterator[None]:
    """Keep what libraries print away from the terminal; its end is printed where the block fails.

    Messages of enginix appear as ever. Libraries that kept a stream from before the block still reach it.

    Args:
        of: whose output it is, for the message.
    """
    folded = io.StringIO()
    outer, _output.messages = _output.messages, _output.messages or sys.stderr
    try:
        with contextlib.redirect_stdout(folded), contextlib.redirect_stderr(folded):
            yield
    except BaseException:
        for line in folded.getvalue().splitlines()[-FOLDED_LINES:]:
            print_message(f"{of}: {line}")
        raise
    finally:
        _output.messages = outer


def report_error(e: Exception) -> int:
    """Print on standard error why a command failed; return its exit code.

    Any other exception than ``EnginixError`` is a bug; ``ENGINIX_TRACEBACK=1`` prints its traceback.
    """
    if not isinstance(e, EnginixError) and os.environ.get("ENGINIX_TRACEBACK"):
        import traceback

        traceback.print_exception(e)
    error = explain_error(e)
    _print_line(redact_secrets(f"error: {error}"), sys.stderr)
    return error.exit_code


def explain_error(e: Exception) -> EnginixError:
    """Return the error that users see: itself, or a bug with what to do about it."""
    if isinstance(e, EnginixError):
        return e
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(
            f"cannot be written: {e.strerror}",
            where=e.filename or "the output",
            fix="free space where it is written, or write it elsewhere",
        )
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


def format_duration(seconds: float) -> str:
    """Return a time with its unit: ``222`` → ``3 min 42 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Heartbeat:
    """Says that something is awaited: a line that is drawn again on a terminal, else one every ``interval``.

    Attributes:
        interval: seconds between two lines, so that a log neither stalls nor floods.
    """

    def __init__(self, interval: float = 60.0) -> None:
        self.interval = interval
        self._last = time.monotonic()

    def beat(self, text: str) -> None:
        if is_watched():
            show_live_line(text)
            return
        now = time.monotonic()
        if now - self._last >= self.interval:
            self._last = now
            print_message(text)
