"""The error of engines of TensorRT for RTX."""

from __future__ import annotations

from typing import ClassVar

from enginix.errors import EXIT_CHECK_FAILED, EnginixError


class PlanError(EnginixError):
    """The builder failed, or its plan is not what was asked for."""

    exit_code: ClassVar[int] = EXIT_CHECK_FAILED
    kind: ClassVar[str] = "plan"
