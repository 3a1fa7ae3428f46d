"""TensorRT-LLM checkpoints executed by plain PyTorch, on CPU or any GPU.

``Executor.load(checkpoint)`` reads a checkpoint; ``scheduler.Scheduler`` serves many requests with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enginix.reference.executor import Executor

__all__ = ["Executor"]


def __getattr__(name: str) -> Any:
    # The layout half of this package needs no torch, so only the executor imports it.
    if name == "Executor":
        from enginix.reference.executor import Executor

        return Executor
    raise AttributeError(name)
