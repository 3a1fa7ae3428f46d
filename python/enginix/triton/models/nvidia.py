"""NVIDIA's Python models, extended by messages: a request's messages become its text first.

A request without messages reaches NVIDIA's model unchanged. One with messages reaches it as
:class:`RequestWithText`, its text rendered by the model's chat template.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enginix.errors import RepositoryError
from enginix.triton.models import chat
from enginix.triton.models.detokenizer import load_tokenizer
from enginix.triton.models.request import Inputs, RequestError, require_parameter

# Prefix of a text from a template, between tensorrt_llm_bls and preprocessing: its special tokens are spelled
# out, so preprocessing adds no others. NVIDIA's code passes the text on unread.
TEMPLATED = "\0"


class RequestWithText:
    """A request with another text; everything else is that of the original request.

    Args:
        dropped: names of inputs that NVIDIA's model does not know.
        tensor: replaces the text.
    """

    def __init__(self, request: Any, dropped: Sequence[str], tensor: Any) -> None:
        self._request = request
        self._dropped = (*dropped, tensor.name())
        self._tensor = tensor

    def inputs(self) -> list[Any]:
        """Return the inputs as the Python backend does, for its helpers that read them by name."""
        remaining = [t for t in self._request.inputs() if t.name() not in self._dropped]
        return [*remaining, self._tensor]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


@dataclass(frozen=True)
class _PreparedRequest:
    """A request for NVIDIA's model, or the error that refuses it; ``ids`` replace the model's own ids."""

    request: Any = None
    ids: tuple[int, ...] | None = None
    refused: str | None = None


class _NvidiaModel(ABC):
    """Base of the three models: reads messages, and answers refused requests.

    Args:
        args: as Triton passes them to ``initialize``.
        backend: the module ``triton_python_backend_utils``.
        model: NVIDIA's model, not initialized.
    """

    text, messages, arguments = "text_input", "messages", "chat_template_args"

    def __init__(self, args: dict[str, str], backend: Any, model: Any) -> None:
        config = json.loads(args["model_config"])
        directory = Path(require_parameter(config, "tokenizer_dir"))
        self._backend = backend
        self._batched = int(config["max_batch_size"]) > 0
        self._decoupled = bool((config.get("model_transaction_policy") or {}).get("decoupled"))
        self._template = chat.load_chat_template(directory)
        self._tokenizer: Any = None
        self._tokenizer_error = ""
        try:
            self._tokenizer = load_tokenizer(directory)
        except RepositoryError as e:
            # NVIDIA's models read other kinds of tokenizers, too; only messages cannot be served with those.
            self._tokenizer_error = str(e)
        self._model = model
        model.initialize(args)

    def execute(self, requests: Sequence[Any]) -> Any:
        """Answer as NVIDIA's model does; requests that are refused here get an error."""
        prepared = [self._prepared(request) for request in requests]
        accepted = [p.request for p in prepared if p.refused is None]
        answers = self._model.execute(accepted) if accepted else None
        if self._decoupled or (accepted and answers is None):
            self._send_refusals(requests, prepared)
            return None
        remaining = iter(answers or [])
        return [
            self._refusal(p) if p.refused is not None else self._answer(p, next(remaining)) for p in prepared
        ]

    def close(self) -> None:
        """Call NVIDIA's ``finalize``."""
        if hasattr(self._model, "finalize"):
            self._model.finalize()

    def _prepared(self, request: Any) -> _PreparedRequest:
        inputs = Inputs(request)
        try:
            text_tensor = self._backend.get_input_tensor_by_name(request, self.text)
            if text_tensor is not None and text_tensor.as_numpy().size != 1:
                return _PreparedRequest(request)  # a batch of texts, which NVIDIA's models accept
            conversation = chat.read_chat(inputs, self.text, self.messages, self.arguments)
            if conversation is None:
                return self._plain(request, inputs)
            if self._tokenizer is None:
                raise RequestError(f"messages: {self._tokenizer_error}")
            return self._templated(request, self._template.render(conversation))
        except RequestError as e:
            return _PreparedRequest(refused=str(e))

    def _plain(self, request: Any, inputs: Inputs) -> _PreparedRequest:
        return _PreparedRequest(request)

    @abstractmethod
    def _templated(self, request: Any, prompt: str) -> _PreparedRequest:
        """Return the request with a template's text instead of its messages."""

    def _answer(self, prepared: _PreparedRequest, response: Any) -> Any:
        return response

    def _replaced(self, request: Any, text: str) -> RequestWithText:
        row = np.array([text.encode("utf-8")], np.object_)
        tensor = self._backend.Tensor(self.text, row.reshape(1, 1) if self._batched else row)
        return RequestWithText(request, (self.messages, self.arguments), tensor)

    def _encoded(self, text: str, *, special: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def _refusal(self, prepared: _PreparedRequest) -> Any:
        error = self._backend.TritonError(prepared.refused, self._backend.TritonError.INVALID_ARG)
        return self._backend.InferenceResponse([], error=error)

    def _send_refusals(self, requests: Sequence[Any], prepared: Sequence[_PreparedRequest]) -> None:
        for request, prepared_request in zip(requests, prepared, strict=True):
            if prepared_request.refused is not None:
                final = self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL
                request.get_response_sender().send(self._refusal(prepared_request), flags=final)


class Preprocessing(_NvidiaModel):
    """NVIDIA's preprocessing; messages become the ids of the template's text, without more special tokens."""

    text, messages, arguments = "QUERY", "MESSAGES", "CHAT_TEMPLATE_ARGS"

    def _plain(self, request: Any, inputs: Inputs) -> _PreparedRequest:
        text = inputs.text(self.text) or ""
        if text.startswith(TEMPLATED) and self._tokenizer is not None:
            return self._templated(request, text[len(TEMPLATED) :])
        return _PreparedRequest(request)

    def _templated(self, request: Any, prompt: str) -> _PreparedRequest:
        return _PreparedRequest(self._replaced(request, prompt), self._encoded(prompt, special=False))

    def _answer(self, prepared: _PreparedRequest, response: Any) -> Any:
        if prepared.ids is None or response.has_error():
            return response
        return self._backend.InferenceResponse(list(self._with_ids(prepared.ids, response)))

    def _with_ids(self, ids: tuple[int, ...], response: Any) -> Iterator[Any]:
        tensor = self._backend.Tensor
        yield tensor("INPUT_ID", np.array([ids], np.int32))
        yield tensor("REQUEST_INPUT_LEN", np.array([[len(ids)]], np.int32))
        for output in response.output_tensors():
            if output.name() not in ("INPUT_ID", "REQUEST_INPUT_LEN"):
                yield output


class Bls(_NvidiaModel):
    """NVIDIA's tensorrt_llm_bls, which calls preprocessing itself."""

    def _templated(self, request: Any, prompt: str) -> _PreparedRequest:
        return _PreparedRequest(self._replaced(request, TEMPLATED + prompt))


class Llmapi(_NvidiaModel):
    """NVIDIA's llmapi model: the LLM class encodes the text itself, and adds special tokens."""

    def _templated(self, request: Any, prompt: str) -> _PreparedRequest:
        expected_ids = self._encoded(prompt, special=False)
        begins = [s for s in self._template.special_texts() if prompt.startswith(s)]
        for text in (prompt, *(prompt[len(s) :] for s in begins)):
            if self._encoded(text, special=True) == expected_ids:
                return _PreparedRequest(self._replaced(request, text))
        raise RequestError(
            "messages: TensorRT-LLM's tokenizer adds special tokens to every text, which this model's chat "
            "template does not have; serve it with trtllm-serve, or render the template and send text_input"
        )
