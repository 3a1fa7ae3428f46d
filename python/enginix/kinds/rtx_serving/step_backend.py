"""The one interface between the loop that serves and what executes an engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import torch

from enginix.kinds.rtx.engine_description import EngineShape
from enginix.kinds.rtx.step_inputs import StepInputs
from enginix.kinds.rtx_serving.start import CACHE_VARIABLE


class StepBackend(Protocol):
    """Executes steps of an engine. It owns the KV cache, and all buffers. Not thread-safe.

    Two classes implement it: :class:`.runtime_backend.RuntimeBackend`, by NVIDIA's runtime on a GPU, and
    :class:`.interpreter_backend.InterpreterBackend`, by PyTorch on a CPU.
    """

    shape: EngineShape
    vocab_size: int

    def run_step(self, inputs: StepInputs) -> torch.Tensor:
        """Execute a step and wait for it.

        Args:
            inputs: of all slots. Each slot's tokens go into its cache, from its ``write_indices`` on.

        Returns:
            Logits float32 [slots, vocab_size] after the token of ``last_indices``; the next step may
            overwrite them.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what executes, for people and for records: software, versions, GPU."""
        ...

    def close(self) -> None:
        """Release all memory; may be called twice."""
        ...


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
