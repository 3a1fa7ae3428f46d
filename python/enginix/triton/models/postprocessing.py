"""postprocessing: token ids → text, chunk by chunk, nothing lost between chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from enginix.triton.contract import EXECUTOR
from enginix.triton.models.detokenizer import Detokenizer, load_tokenizer
from enginix.triton.models.request import Inputs, RequestError, answer, boolean, required


class Postprocessing:
    """Serves ``postprocessing``.

    Args:
        args: as Triton passes them to ``initialize``.
        backend: the module ``triton_python_backend_utils``.
    """

    def __init__(self, args: dict[str, str], backend: Any) -> None:
        config = json.loads(args["model_config"])
        self._backend = backend
        self._detokenizer = Detokenizer(
            load_tokenizer(Path(required(config, "tokenizer_dir"))),
            skip_special_tokens=boolean(config, "skip_special_tokens", True),
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request, in order."""
        responses = [answer(r, self._backend, self._serve) for r in requests]
        for request in requests:
            if request.is_cancelled():
                self._stop(Inputs(request, self._backend))
        return responses

    def close(self) -> None:
        """Nothing to release."""

    def _stop(self, inputs: Inputs) -> None:
        """Tells tensorrt_llm that nobody listens any more.

        Triton's ensembles pass a client's cancellation on to steps that start later, which is how it is
        seen here, but not to tensorrt_llm, whose step is under way.
        """
        number = inputs.scalar("GENERATION_ID")
        if number is None or inputs.scalar("IS_FINAL"):
            return
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
