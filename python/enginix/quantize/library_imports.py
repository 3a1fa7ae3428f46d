"""Imports the libraries of quantization when they are needed and keeps them off standard output."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from enginix.console import fold_output
from enginix.errors import EnginixError, MachineError, ModelError
from enginix.optional_libraries import missing_library, pause_garbage_collector
from enginix.wording import first_line


def import_library(name: str) -> Any:
    """Import a library.

    Raises:
        MachineError: it is not installed.
    """
    try:
        with pause_garbage_collector():
            return importlib.import_module(name)
    except ImportError as e:
        raise missing_library(e, "quantize") or e from e


@contextlib.contextmanager
def translate_library_errors(what: str) -> Iterator[None]:
    """Fold a library's prints away, and raise its exceptions as errors of enginix.

    Raises:
        MachineError: the disk or the GPU's memory is full.
        ModelError: any other exception of the library.
    """
    try:
        with fold_output(what):
            yield
    except (EnginixError, OSError):
        raise
    except Exception as e:
        message = f"{type(e).__name__}: {first_line(e)}"
        if "os error 28" in message or "No space left" in message:
            raise MachineError("the disk is full", fix="free disk space, or choose another -o") from e
        if type(e).__name__ == "OutOfMemoryError":
            fix = "lower --batch-size, or use a GPU with more memory"
            raise MachineError(f"the GPU's memory is full: {first_line(e)}", fix=fix) from e
        fix = "run again with ENGINIX_TRACEBACK=1 to see where"
        raise ModelError(f"{what} failed: {message}", fix=fix) from e
