"""NVIDIA's Python models with messages: what they are given is made of messages first, the rest is theirs.

A request without messages reaches NVIDIA's model as it came. One with messages reaches it through
:class:`Replaced`, its text rendered by the model's chat template.
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
from enginix.triton.models.request import Inputs, RequestError, required

# Before a text that a template made, on its way from tensorrt_llm_bls to preprocessing: its special tokens
# are spelled out, none are to be added. NVIDIA's code hands the text on unread.
TEMPLATED = "\0"


class Replaced:
    """A request whose text is another; everything else of it is the request's own.

    Args:
        dropped: names of inputs that NVIDIA's model does not know.
        tensor: takes the place of the text.
    """

    def __init__(self, request: Any, dropped: Sequence[str], tensor: Any) -> None:
        self._request = request
        self._dropped = (*dropped, tensor.name())
        self._tensor = tensor

    def inputs(self) -> list[Any]:
        """As the Python backend's own, which its helpers read by name."""
        kept = [t for t in self._request.inputs() if t.name() not in self._dropped]
        return [*kept, self._tensor]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


@dataclass(frozen=True)
class _Prepared:
    """A request for NVIDIA's model, or why there is none; ``ids`` take the place of those it finds."""

    request: Any = None
    ids: tuple[int, ...] | None = None
    refused: str | None = None


class _Model(ABC):
    """What the three have in common: reading messages, and answering what is refused.

    Args:
        args: as Triton passes them to ``initialize``.
        backend: the module ``triton_python_backend_utils``.
        model: NVIDIA's, not initialized.
    """

    text, messages, arguments = "text_input", "messages", "chat_template_args"

    def __init__(self, args: dict[str, str], backend: Any, model: Any) -> None:
        config = json.loads(args["model_config"])
        directory = Path(required(config, "tokenizer_dir"))
        self._backend = backend
        self._batched = int(config["max_batch_size"]) > 0
        self._decoupled = bool((config.get("model_transaction_policy") or {}).get("decoupled"))
        self._template = chat.load(directory)
        self._tokenizer: Any = None
        self._lacks = ""
        try:
            self._tokenizer = load_tokenizer(directory)
        except RepositoryError as e:
            # NVIDIA's models read other kinds of tokenizers, which only messages cannot be served with.
            self._lacks = str(e)
        self._model = model
        model.initialize(args)

    def execute(self, requests: Sequence[Any]) -> Any:
        """As NVIDIA's model answers; what is refused here gets an error."""
        prepared = [self._prepared(request) for request in requests]
        accepted = [p.request for p in prepared if p.refused is None]
        answers = self._model.execute(accepted) if accepted else None
        if self._decoupled or (accepted and answers is None):
            self._send_refusals(requests, prepared)
            return None
        rest = iter(answers or [])
        return [self._refusal(p) if p.refused is not None else self._answer(p, next(rest)) for p in prepared]

    def close(self) -> None:
        """NVIDIA's ``finalize``."""
        if hasattr(self._model, "finalize"):
            self._model.finalize()

    def _prepared(self, request: Any) -> _Prepared:
        inputs = Inputs(request)
        try:
            found = self._backend.get_input_tensor_by_name(request, self.text)
            if found is not None and found.as_numpy().size != 1:
                return _Prepared(request)  # a batch of texts, which NVIDIA's models take
            said = chat.read(inputs, self.text, self.messages, self.arguments)
            if said is None:
                return self._plain(request, inputs)
            if self._tokenizer is None:
                raise RequestError(f"messages: {self._lacks}")
            return self._templated(request, self._template.render(said))
        except RequestError as e:
            return _Prepared(refused=str(e))

    def _plain(self, request: Any, inputs: Inputs) -> _Prepared:
        return _Prepared(request)

    @abstractmethod
    def _templated(self, request: Any, prompt: str) -> _Prepared:
        """The request with a template's text in place of its messages."""

    def _answer(self, prepared: _Prepared, response: Any) -> Any:
        return response

    def _replaced(self, request: Any, text: str) -> Replaced:
        row = np.array([text.encode("utf-8")], np.object_)
        tensor = self._backend.Tensor(self.text, row.reshape(1, 1) if self._batched else row)
        return Replaced(request, (self.messages, self.arguments), tensor)

    def _encoded(self, text: str, *, special: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def _refusal(self, prepared: _Prepared) -> Any:
        error = self._backend.TritonError(prepared.refused, self._backend.TritonError.INVALID_ARG)
        return self._backend.InferenceResponse([], error=error)

    def _send_refusals(self, requests: Sequence[Any], prepared: Sequence[_Prepared]) -> None:
        for request, made in zip(requests, prepared, strict=True):
            if made.refused is not None:
                final = self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL
                request.get_response_sender().send(self._refusal(made), flags=final)


class Preprocessing(_Model):
    """NVIDIA's preprocessing; ids of messages are those of the template's text, no special token added."""

    text, messages, arguments = "QUERY", "MESSAGES", "CHAT_TEMPLATE_ARGS"

    def _plain(self, request: Any, inputs: Inputs) -> _Prepared:
        text = inputs.text(self.text) or ""
        if text.startswith(TEMPLATED) and self._tokenizer is not None:
            return self._templated(request, text[len(TEMPLATED) :])
        return _Prepared(request)

    def _templated(self, request: Any, prompt: str) -> _Prepared:
        return _Prepared(self._replaced(request, prompt), self._encoded(prompt, special=False))

    def _answer(self, prepared: _Prepared, response: Any) -> Any:
        if prepared.ids is None or response.has_error():
            return response
        return self._backend.InferenceResponse(list(self._with_ids(prepared.ids, response)))

    def _with_ids(self, ids: tuple[int, ...], response: Any) -> Iterator[Any]:
        tensor = self._backend.Tensor
        yield tensor("INPUT_ID", np.array([ids], np.int32))
        yield tensor("REQUEST_INPUT_LEN", np.array([[len(ids)]], np.int32))
        for found in response.output_tensors():
            if found.name() not in ("INPUT_ID", "REQUEST_INPUT_LEN"):
                yield found


class Bls(_Model):
    """NVIDIA's tensorrt_llm_bls, which asks preprocessing itself."""

    def _templated(self, request: Any, prompt: str) -> _Prepared:
        return _Prepared(self._replaced(request, TEMPLATED + prompt))


class Llmapi(_Model):
    """NVIDIA's llmapi model: the LLM class encodes the text itself, special tokens added."""

    def _templated(self, request: Any, prompt: str) -> _Prepared:
        wanted = self._encoded(prompt, special=False)
        begins = [s for s in self._template.special_texts() if prompt.startswith(s)]
        for text in (prompt, *(prompt[len(s) :] for s in begins)):
            if self._encoded(text, special=True) == wanted:
                return _Prepared(self._replaced(request, text))
        raise RequestError(
            "messages: TensorRT-LLM's tokenizer adds special tokens to every text, which this model's chat "
            "template does not have; serve it with trtllm-serve, or render the template and send text_input"
        )
