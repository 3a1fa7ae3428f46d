"""postprocessing: token ids → text, chunk by chunk, nothing lost between chunks."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from enginix.triton.contract import EXECUTOR
from enginix.triton.models.detokenizer import Detokenizer, load_tokenizer
from enginix.triton.models.request import Inputs, RequestError, answer, boolean, required

# Seconds between two questions whether a stream's client is still there; each is a message to the server and
# back, which takes as long as decoding a chunk.
PERIOD = 0.1
# Streams remembered; those that end elsewhere, at another instance, are never heard of again.
REMEMBERED = 4096


class Postprocessing:
    """Serves ``postprocessing``.

    Args:
        args: as Triton passes them to ``initialize``.
        backend: the module ``triton_python_backend_utils``.
    """

    def __init__(self, args: dict[str, str], backend: Any) -> None:
        config = json.loads(args["model_config"])
        self._backend = backend
        self._asked: dict[int, float] = {}
        self._detokenizer = Detokenizer(
            load_tokenizer(Path(required(config, "tokenizer_dir"))),
            skip_special_tokens=boolean(config, "skip_special_tokens", True),
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request, in order."""
        read = [(r, Inputs(r, self._backend)) for r in requests]
        responses = [answer(inputs, self._backend, self._serve) for _, inputs in read]
        for request, inputs in read:
            if (number := self._due(inputs)) is not None and request.is_cancelled():
                self._stop(number)
        return responses

    def close(self) -> None:
        """Nothing to release."""

    def _due(self, inputs: Inputs) -> int | None:
        """The generation_id of a stream that goes on and has not been asked about for a while."""
        try:
            number, final = inputs.scalar("GENERATION_ID"), inputs.scalar("IS_FINAL")
        except RequestError:  # the response says so
            return None
        if number is None:
            return None
        if final:
            self._asked.pop(number, None)
            return None
        now = time.monotonic()
        if now - self._asked.get(number, -PERIOD) < PERIOD:
            return None
        if len(self._asked) > REMEMBERED:
            self._asked.clear()
        self._asked[number] = now
        return int(number)

    def _stop(self, number: int) -> None:
        """Tells tensorrt_llm that nobody listens any more.

        Triton's ensembles pass a client's cancellation on to steps that start later, which is how it is
        seen here, but not to tensorrt_llm, whose step is under way.
        """
        tensor = self._backend.Tensor
        one = np.ones((1, 1), np.int32)
        request = self._backend.InferenceRequest(
            model_name=EXECUTOR,
            request_id=str(number),
            requested_output_names=[],
            inputs=[
                tensor("stop", np.array([[True]])),
                tensor("input_lengths", one),
                tensor("request_output_len", one),
            ],
        )
        for _ in request.exec(decoupled=True):
            pass

    def _serve(self, inputs: Inputs) -> list[Any]:
        ids = inputs.array("TOKENS_BATCH")
        lengths = inputs.array("SEQUENCE_LENGTH")
        if ids is None or lengths is None:
            raise RequestError("TOKENS_BATCH and SEQUENCE_LENGTH are both needed")
        if ids.ndim != 3 or lengths.size != ids.shape[1]:
            raise RequestError(
                f"TOKENS_BATCH has shape {ids.shape}, SEQUENCE_LENGTH {lengths.shape}: one length a beam"
            )
        context = inputs.array("CONTEXT_IDS")
        final = inputs.scalar("IS_FINAL")
        texts = [
            self._detokenizer.text(
                row[:length].tolist(),
                context=() if context is None else context.reshape(-1).tolist(),
                final=final is None or bool(final),
            )
            for row, length in zip(ids[0], lengths.reshape(-1), strict=True)
        ]
        output = np.array([[t.encode("utf-8") for t in texts]], dtype=np.object_)
        return [self._backend.Tensor("OUTPUT", output)]
