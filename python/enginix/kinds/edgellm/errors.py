"""What this room's checks refuse with."""

from __future__ import annotations

from typing import ClassVar

from enginix.errors import EXIT_CHECK_FAILED, EnginixError


class ExportError(EnginixError):
    """The exporter failed, or wrote something that is not the model it was given."""

    exit_code: ClassVar[int] = EXIT_CHECK_FAILED
    kind: ClassVar[str] = "export"
