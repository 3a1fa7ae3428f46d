"""The model ensemble of kind ``reference``: text or messages → text, the model for clients.

A Python model, with the tensors of NVIDIA's ensemble. Triton's own ensembles take a process and a queue for
each step (docs/explanation/measurements.md, Serving), and do not cancel a running step when its client
disconnects (ensemble_scheduler.cc).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from enginix.triton.contract import ENSEMBLE, EXECUTOR, load_nvidia_contract
from enginix.triton.models.answers import ResponseSender
from enginix.triton.models.channel import Channel, socket_path
from enginix.triton.models.detokenizer import Detokenizer, load_tokenizer
from enginix.triton.models.generation import Chunk, GenerationLimits, Order, build_order
from enginix.triton.models.heartbeat import HeartbeatFile
from enginix.triton.models.prompt import PromptReader
from enginix.triton.models.remote_channel import RemoteChannel
from enginix.triton.models.request import Inputs, read_boolean, read_check_period, require_parameter
from enginix.triton.models.server_metrics import ServerMetrics

# Share of one processor for sending; each response costs the server and its clients several times as much.
SHARE = 1 / 4
# tensorrt_llm's name of an input → ensemble's, by the maps of the contract's ensemble.
NAMES = {
    inner: outer
    for step in load_nvidia_contract()[ENSEMBLE].steps
    if step.model == EXECUTOR
    for inner, outer in step.inputs.items()
    if not outer.startswith("_")
}


class Ensemble:
    """Serves ``ensemble``.

    Args:
        args: as Triton passes them to ``initialize``.
        backend: the module ``triton_python_backend_utils``.
        channel: channel to the executor; this server's by default.
    """

    def __init__(self, args: dict[str, str], backend: Any, channel: Channel | None = None) -> None:
        config = json.loads(args["model_config"])
        self._backend = backend
        self._limits = GenerationLimits.of(config)
        directory = Path(require_parameter(config, "tokenizer_dir"))
        tokenizer = load_tokenizer(directory)
        self._prompts = PromptReader(
            tokenizer,
            directory,
            max_seq_len=self._limits.max_seq_len,
            add_special_tokens=read_boolean(config, "add_special_tokens", True),
        )
        self._detokenizer = Detokenizer(
            tokenizer, skip_special_tokens=read_boolean(config, "skip_special_tokens", True)
        )
        self._answers = ResponseSender(
            backend,
            channel or RemoteChannel(socket_path()),
            self._content,
            period=read_check_period(config),
            share=SHARE,
            metrics=ServerMetrics(backend, ENSEMBLE),
            heartbeat=HeartbeatFile(ENSEMBLE),
        )

    def execute(self, requests: Sequence[Any]) -> None:
        """Pass every request to the executor; refuse invalid ones at once."""
        self._answers.take(requests, self._read)

    def close(self) -> None:
        """Close the channel to the executor; Triton calls it when no request is in flight."""
        self._answers.close()

    def _read(self, request: Any) -> Order:
        inputs = Inputs(request, NAMES)
        prompt = self._prompts.read(inputs)
        self._prompts.check_end_id(inputs)
        return build_order(
            inputs,
            self._limits,
            prompt=prompt,
            max_tokens=inputs.scalar("max_tokens"),
            stop_words=self._prompts.stop_words(inputs),
        )

    def _content(self, chunk: Chunk) -> list[Any]:
        text = self._detokenizer.text(chunk.ids, context=chunk.context, final=chunk.finish is not None)
        return [self._backend.Tensor("text_output", np.array([[text.encode()]], np.object_))]
