"""LiteLLM's custom provider ``enginix``: a model of a Triton server that ``enginix triton-repo`` made a
repository for.

LiteLLM's own Triton provider knows max_tokens only, and not the model's chat template. This one hands the
messages to the server, which applies the template, and everything else that the request says.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import httpx
from litellm.llms.custom_llm import CustomLLM, CustomLLMError
from litellm.types.utils import Choices, GenericStreamingChunk, Message, ModelResponse, Usage

from enginix.openai import triton
from enginix.openai.request import Refused, inputs, texts
from enginix.openai.triton import BackendError, Piece

PROVIDER = "enginix"
# LiteLLM's own, in what it calls optional parameters of the model.
_LITELLM = ("max_retries", "stream", "stream_options", "extra_headers", "user")


class Handler(CustomLLM):  # type: ignore[misc]
    """Answers requests of the router; one for all servers.

    Attributes:
        default_max_tokens: for requests that say none.
        silence: seconds after which a server that says nothing has failed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.default_max_tokens = 256
        self.silence = 600.0
        self._client: httpx.AsyncClient | None = None

    async def acompletion(
        self,
        model: str,
        messages: list[Any],
        api_base: str,
        model_response: ModelResponse,
        optional_params: dict[str, Any],
        litellm_params: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> ModelResponse:
        """A whole answer. If the client goes, so does the request to Triton."""
        question = self._question(messages, optional_params, litellm_params)
        pieces: list[str] = []
        last: Piece | None = None
        async for last in self._ask(api_base, model, question):
            pieces.append(last.text)
        assert last is not None
        model_response.choices = [
            Choices(
                index=0,
                finish_reason=last.finish_reason,
                message=Message(role="assistant", content="".join(pieces)),
            )
        ]
        model_response.usage = Usage(**_usage(last))
        return model_response

    async def astreaming(
        self,
        model: str,
        messages: list[Any],
        api_base: str,
        optional_params: dict[str, Any],
        litellm_params: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> AsyncGenerator[GenericStreamingChunk, None]:
        """An answer in pieces."""
        question = self._question(messages, optional_params, litellm_params)
        async with aclosing(self._ask(api_base, model, question)) as answer:
            async for piece in answer:
                yield GenericStreamingChunk(
                    text=piece.text,
                    is_finished=bool(piece.finish_reason),
                    finish_reason=piece.finish_reason,
                    usage=_usage(piece) if piece.finish_reason else None,
                    index=0,
                    tool_use=None,
                )

    async def _ask(self, url: str, model: str, question: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
        if self._client is None:
            self._client = triton.new_client(self.silence)
        try:
            async with aclosing(triton.stream(self._client, url, model, question)) as answer:
                async for piece in answer:
                    yield piece
        except BackendError as e:
            raise CustomLLMError(e.status, e.message) from e

    def _question(
        self, messages: list[Any], parameters: Mapping[str, Any], litellm_params: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        given = {k: v for k, v in parameters.items() if k not in _LITELLM}
        extra = given.pop("extra_body", None) or {}
        try:
            question = inputs({**given, **extra}, self.default_max_tokens)
            if (litellm_params or {}).get("text_completion"):
                # LiteLLM wraps the prompt of a completion in a message; it must not meet the chat template.
                return {**question, "text_input": "".join(str(m["content"]) for m in messages)}
            return {**question, "messages": json.dumps(texts(messages), ensure_ascii=False)}
        except Refused as e:
            raise CustomLLMError(e.status, e.message) from e


def _usage(piece: Piece) -> dict[str, int]:
    return {
        "prompt_tokens": piece.prompt_tokens,
        "completion_tokens": piece.completion_tokens,
        "total_tokens": piece.prompt_tokens + piece.completion_tokens,
    }


# LiteLLM finds it by this name.
handler = Handler()
