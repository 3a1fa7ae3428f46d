"""The model tensorrt_llm of kind ``rtx``: an engine of TensorRT for RTX, behind TensorRT-LLM's tensors.

It is the model of kind ``reference`` over another scheduler.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from enginix.triton.models.request import read_parameter
from enginix.triton.models.tensorrt_llm import TensorrtLlm


class RtxExecutor(TensorrtLlm):
    """Serves ``tensorrt_llm``.

    Args:
        args: as Triton passes them to ``initialize``; with the parameter ``interpreter_checkpoint`` PyTorch
            executes the network of that checkpoint on the CPU, in place of NVIDIA's runtime.
        backend: the module ``triton_python_backend_utils``.
    """

    def __init__(self, args: dict[str, str], backend: Any) -> None:
        interpreted = read_parameter(json.loads(args["model_config"]), "interpreter_checkpoint")
        checkpoint = Path(interpreted) if interpreted else None

        def make_scheduler(plan_folder: Path, device: str, max_batch_size: int) -> tuple[Any, Any]:
            # torch and NVIDIA's library are needed here and nowhere else in the repository's models.
            from enginix.kinds.rtx_serving.slot_scheduler import SlotScheduler
            from enginix.kinds.rtx_serving.step_backend import load_step_backend
            from enginix.reference.scheduler import GenerationRequest

            step_backend = load_step_backend(plan_folder.parent, checkpoint)
            return SlotScheduler(step_backend, max_batch_size), GenerationRequest

        super().__init__(args, backend, make_scheduler)
