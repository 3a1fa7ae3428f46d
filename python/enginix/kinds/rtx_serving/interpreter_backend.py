"""Execute an engine's network by PyTorch on the CPU, without NVIDIA's runtime and without a GPU.

It is for tests of everything around the engine: it walks the network that the engine was built of, layer by
layer, and the plan itself is not read. The network comes from the checkpoint, which an engine does not hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from enginix import __version__
from enginix.kinds.rtx.checkpoint_support import require_engine_checkpoint
from enginix.kinds.rtx.engine_description import EngineShape, read_engine_description
from enginix.kinds.rtx.network.decoder import DecoderNetwork
from enginix.kinds.rtx.network.interpreter import NetworkInterpreter
from enginix.kinds.rtx.plan_builder import LibraryLog, import_tensorrt_rtx, make_logger
from enginix.kinds.rtx.step_inputs import StepInputs


class InterpreterBackend:
    """See :class:`.step_backend.StepBackend`.

    It computes in float32, as kind ``reference`` does on a CPU, so that both give the same tokens.
    """

    def __init__(self, engine: Path, checkpoint: Path) -> None:
        """Describe the network again, and allocate the caches.

        Args:
            checkpoint: the one that the engine was built from.

        Raises:
            ManifestError: the engine was built from another checkpoint, or its description is damaged.
            MachineError: TensorRT for RTX is of another version.
        """
        require_engine_checkpoint(engine, checkpoint)
        self._description = description = read_engine_description(engine)
        self.shape: EngineShape = description
        self.vocab_size = description.vocab_size
        trt = import_tensorrt_rtx()
        network = DecoderNetwork(trt, make_logger(trt, LibraryLog()), checkpoint, description)
        self._network = network  # the interpreter reads its memory
        self._interpreter = NetworkInterpreter(network.writer, is_wide=True)
        self._caches = {name: torch.zeros(description.cache_shape) for name in description.caches}

    def run_step(self, inputs: StepInputs) -> torch.Tensor:
        outputs = self._interpreter.run({**inputs, **self._caches})
        self._caches = {name: outputs[f"{name}_next"] for name in self._caches}
        return outputs["logits"]

    def describe(self) -> dict[str, Any]:
        return {
            "executor": "enginix's interpreter of the network, in PyTorch on the CPU; not NVIDIA's runtime",
            "enginix": __version__,
            "torch": torch.__version__,
            "tensorrtRtx": self._description.version,
        }

    def close(self) -> None:
        self._caches = {}
