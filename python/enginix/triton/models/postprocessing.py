"""postprocessing: token ids → text, chunk by chunk, nothing lost between chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
        return [answer(r, self._backend, self._serve) for r in requests]

    def close(self) -> None:
        """Nothing to release."""

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
