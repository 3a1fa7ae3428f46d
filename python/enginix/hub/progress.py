"""Progress of a transfer: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any

from enginix.console import format_bytes, print_message


class Progress:
    """Bytes and files of one transfer; its methods may be called from several threads.

    Args:
        what: the name of the transfer at the start of the line.
        total: bytes in all.
        files: number of files.
        interval: seconds between two lines in a log.
    """

    def __init__(self, what: str, total: int, files: int, interval: float = 60.0) -> None:
        self.what, self.total, self.files, self.interval = what, total, files, interval
        self._bytes = self._new = self._done = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._bar: Any = None
        self._thread: threading.Thread | None = None
        self._start = time.monotonic()

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm  # type: ignore[import-untyped]

            self._bar = tqdm(
                total=self.total, unit="B", unit_scale=True, unit_divisor=1024, desc=self.what, leave=False
            )
        else:
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.close()
        if self._thread is not None:
            self._thread.join()

    def add_resumed(self, n: int) -> None:
        """Add ``n`` bytes of an earlier run."""
        self._add(n, new=False)

    def moved(self, n: int) -> None:
        """Add ``n`` received bytes; negative when some were thrown away."""
        self._add(n, new=True)

    def file(self) -> None:
        """Add a complete file."""
        with self._lock:
            self._done += 1
            if self._bar is not None:
                self._bar.set_postfix_str(f"{self._done}/{self.files} files")

    def line(self) -> str:
        """Return the state as one line."""
        with self._lock:
            seconds = max(time.monotonic() - self._start, 1e-3)
            return (
                f"{self.what}: {format_bytes(self._bytes)} of {format_bytes(self.total)}, {self._done} of "
                f"{self.files} files, {format_bytes(int(max(self._new, 0) / seconds))}/s"
            )

    def _add(self, n: int, *, new: bool) -> None:
        with self._lock:
            self._bytes += n
            if new:
                self._new += n
            if self._bar is not None:
                self._bar.update(n)

    def _beat(self) -> None:
        # From a thread of its own, so that a hub that stalls does not silence it.
        while not self._over.wait(self.interval):
            print_message(self.line())
