"""The backend of a served engine."""

from __future__ import annotations

import os
from pathlib import Path

from enginix.kinds.rtx_serving.start import CACHE_VARIABLE
from enginix.kinds.rtx_serving.step_backend import StepBackend


def load_step_backend(engine: Path, checkpoint: Path | None) -> StepBackend:
    """Load an engine into NVIDIA's runtime, or its network into the interpreter.

    The runtime keeps compiled kernels in $ENGINIX_RTX_CACHE, or nowhere.

    Args:
        checkpoint: of the engine, which the interpreter executes on the CPU; None for NVIDIA's runtime.

    Raises:
        EnginixError: the engine cannot be executed here; has the reason.
    """
    if checkpoint is not None:
        from enginix.kinds.rtx_serving.interpreter_backend import InterpreterBackend

        return InterpreterBackend(engine, checkpoint)
    from enginix.kinds.rtx_serving.runtime_backend import RuntimeBackend

    named = os.environ.get(CACHE_VARIABLE)
    return RuntimeBackend(engine, Path(named) if named else None)
