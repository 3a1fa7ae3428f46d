"""The error of checks on exports and engines."""

from __future__ import annotations

from typing import ClassVar

from enginix.errors import EXIT_CHECK_FAILED, EnginixError


class ExportError(EnginixError):
    """The exporter failed, or its export is not the given model."""

    exit_code: ClassVar[int] = EXIT_CHECK_FAILED
    kind: ClassVar[str] = "export"
