"""The model tensorrt_llm of kind ``reference``: executes the checkpoint by plain PyTorch, behind
TensorRT-LLM's tensors.

Decoupled: Triton passes requests on and continues; responses are sent as tokens come. The executor is reached
by the model ensemble, too, from its own process
(:class:`enginix.triton.models.channel_server.ChannelServer`).
"""

from __future__ import annotations

import hmac
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from enginix.triton.contract import ENSEMBLE, EXECUTOR, EXECUTOR_KEY
from enginix.triton.models.answers import ResponseSender
from enginix.triton.models.channel import socket_path
from enginix.triton.models.channel_server import ChannelServer
from enginix.triton.models.generation import Chunk, GenerationLimits, Order, read_order
from enginix.triton.models.heartbeat import HeartbeatFile
from enginix.triton.models.request import (
    Inputs,
    RequestError,
    read_check_period,
    read_parameter,
    require_parameter,
)
from enginix.triton.models.served_channels import Generations, LocalChannel
from enginix.triton.models.server_metrics import ServerMetrics

# Share of one processor for sending: the sender runs in the executor's interpreter, at the executor's cost.
SHARE = 1 / 16


class TensorrtLlm:
    """Serves ``tensorrt_llm``.

    Args:
        args: as Triton passes them to ``initialize``.
        backend: the module ``triton_python_backend_utils``.
        scheduler: makes the scheduler of a model directory; the reference executor's by default. Takes
            (checkpoint, device, max_batch_size) and returns (scheduler, request class).
    """

    def __init__(
        self,
        args: dict[str, str],
        backend: Any,
        scheduler: Callable[[Path, str, int], tuple[Any, Any]] | None = None,
    ) -> None:
        config = json.loads(args["model_config"])
        self._backend = backend
        self._limits = GenerationLimits.of(config)
        self._key = executor_key()
        max_batch_size = int(read_parameter(config, "max_batch_size") or config["max_batch_size"])
        waiting = int(read_parameter(config, "max_queue_size") or 0)
        executor_scheduler, request = (scheduler or _reference_scheduler)(
            Path(require_parameter(config, "gpt_model_path")),
            read_parameter(config, "device") or "cpu",
            max_batch_size,
        )
        self._generations = Generations(
            executor_scheduler, request, max_batch_size + waiting if waiting else 0
        )
        self._link = ChannelServer(self._generations, socket_path())
        self._answers = ResponseSender(
            backend,
            LocalChannel(self._generations),
            self._content,
            period=read_check_period(config),
            share=SHARE,
            metrics=ServerMetrics(backend, EXECUTOR, lambda: read_executor_load(executor_scheduler)),
            heartbeat=HeartbeatFile(EXECUTOR, self._generations.is_stuck),
        )

    def execute(self, requests: Sequence[Any]) -> None:
        """Pass every request to the scheduler; refuse invalid ones at once."""
        self._answers.take(requests, self._read)

    def close(self) -> None:
        """Stop the scheduler and all threads; Triton calls it when no request is in flight."""
        self._link.close()
        self._generations.close()
        self._answers.close()

    def _read(self, request: Any) -> Order | None:
        inputs = Inputs(request)
        if self._key is not None and not _is_key(inputs.parameters().get(EXECUTOR_KEY), self._key):
            raise RequestError(f"{EXECUTOR} is for this server's own use; send requests to {ENSEMBLE}")
        if inputs.scalar("stop"):
            # Stop the requests of this id, of whichever model.
            self._generations.stop(request.request_id())
            return None
        return read_order(inputs, self._limits)

    def _content(self, chunk: Chunk) -> list[Any]:
        tensor = self._backend.Tensor
        return [
            tensor("output_ids", np.array([[chunk.ids]], np.int32)),
            tensor("sequence_length", np.array([[len(chunk.ids)]], np.int32)),
        ]


def read_executor_load(scheduler: Any) -> dict[str, float]:
    """Return the executor's numbers for its metrics."""
    running, waiting = scheduler.load
    admitted, seconds = scheduler.waits
    return {
        "running": running,
        "waiting": waiting,
        "admitted_total": admitted,
        "waited_seconds_total": seconds,
    }


def _is_key(value: Any, key: str) -> bool:
    return isinstance(value, str) and hmac.compare_digest(value.encode("utf-8", "replace"), key.encode())


def executor_key() -> str | None:
    """Read the key that opens this model; ``None`` if ``enginix serve`` did not start the server: it is open.

    The file lies in the server's private directory, which is its TMPDIR.

    Raises:
        OSError: the file exists, but is unreadable.
    """
    try:
        return (Path(tempfile.gettempdir()) / EXECUTOR_KEY).read_text("ascii")
    except FileNotFoundError:
        return None


def _reference_scheduler(checkpoint: Path, device: str, max_batch_size: int) -> tuple[Any, Any]:
    # torch is needed here and nowhere else in the repository's models.
    from enginix.reference import Executor
    from enginix.reference.scheduler import GenerationRequest, Scheduler

    return Scheduler(Executor.load(checkpoint, device=device), max_batch_size), GenerationRequest
