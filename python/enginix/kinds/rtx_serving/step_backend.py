"""The one interface between the loop that serves and what executes an engine."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from enginix.kinds.rtx.engine_shape import EngineShape
from enginix.kinds.rtx.step_inputs import StepInputs


class StepBackend(Protocol):
    """Executes steps of an engine. It owns the KV cache, and all buffers. Not thread-safe.

    Two classes implement it: :class:`.runtime_backend.RuntimeBackend`, by NVIDIA's runtime on a GPU, and
    :class:`.interpreter_backend.InterpreterBackend`, by PyTorch on a CPU.
    """

    @property
    def shape(self) -> EngineShape: ...

    @property
    def vocab_size(self) -> int: ...

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
