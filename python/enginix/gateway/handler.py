"""What LiteLLM calls: the custom provider ``enginix``, for Triton servers with a repository of ``enginix
triton-repo``; the custom authentication; and the end of a stream.

LiteLLM's own Triton provider supports max_tokens only, and not the model's chat template. This one sends the
checked request (:class:`enginix.gateway.call.TritonCall`), not LiteLLM's version of it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
from litellm.llms.custom_llm import CustomLLM, CustomLLMError
from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth
from litellm.types.utils import Choices, GenericStreamingChunk, Message, ModelResponse, Usage

from enginix.gateway import triton
from enginix.gateway.call import CALL
from enginix.gateway.client_errors import rewrite_backend_error
from enginix.gateway.exchange import DEPLOYMENT, SCOPE
from enginix.gateway.keys import Caller
from enginix.gateway.response_rewrite import UNFINISHED
from enginix.gateway.triton import BackendError, Piece


class TritonHandler(CustomLLM):  # type: ignore[misc]
    """Answers requests of the router; one for all servers.

    Attributes:
        silence: seconds without data after which a server counts as failed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.silence = 600.0
        self._client: httpx.AsyncClient | None = None

    async def acompletion(
        self, model: str, api_base: str, model_response: ModelResponse, **_: Any
    ) -> ModelResponse:
        """Return a whole answer. If the client disconnects, the request to Triton is cancelled."""
        pieces: list[str] = []
        last: Piece | None = None
        async with aclosing(self._ask(api_base, model)) as answer:
            async for last in answer:
                pieces.append(last.text)
        assert last is not None
        model_response.choices = [
            Choices(
                index=0,
                finish_reason=last.finish_reason,
                message=Message(role="assistant", content="".join(pieces)),
            )
        ]
        model_response.usage = Usage(**_build_usage(last))
        return model_response

    async def astreaming(
        self, model: str, api_base: str, **_: Any
    ) -> AsyncGenerator[GenericStreamingChunk, None]:
        """Yield an answer in pieces."""
        async with aclosing(self._ask(api_base, model)) as answer:
            async for piece in answer:
                yield GenericStreamingChunk(
                    text=piece.text,
                    is_finished=bool(piece.finish_reason),
                    finish_reason=piece.finish_reason,
                    usage=_build_usage(piece) if piece.finish_reason else None,
                    index=0,
                    tool_use=None,
                )

    async def _ask(self, url: str, model: str) -> AsyncGenerator[Piece, None]:
        if self._client is None:
            self._client = triton.new_client(self.silence)
        call = CALL.get()
        try:
            async with aclosing(triton.stream_answer(self._client, url, model, call)) as answer:
                async for piece in answer:
                    if piece.finish_reason:
                        call.usage = _build_usage(piece)
                    yield piece
        except BackendError as e:
            call.failure = rewrite_backend_error(e.message, e.status, call.model)
            raise CustomLLMError(e.status, e.message) from e


def _build_usage(piece: Piece) -> dict[str, int]:
    return {
        "prompt_tokens": piece.prompt_tokens,
        "completion_tokens": piece.completion_tokens,
        "total_tokens": piece.prompt_tokens + piece.completion_tokens,
    }


# LiteLLM finds it by this name.
handler = TritonHandler()


async def authenticate(request: Any, api_key: str) -> UserAPIKeyAuth:
    """Return the caller in LiteLLM's form; its key is checked already.

    Raises:
        ProxyException: the request did not come through the auth middleware.
    """
    caller = request.scope.get(SCOPE)
    if not isinstance(caller, Caller):
        raise ProxyException(message="not authenticated", type="auth_error", param=None, code=401)
    return UserAPIKeyAuth(
        api_key=f"client {caller.name}",
        key_alias=caller.name,
        user_role=LitellmUserRoles.INTERNAL_USER,
        # The middleware has checked the client's models and limits; this request is for one server alone.
        models=[request.scope[DEPLOYMENT]],
    )


def refuse_unfinished_streams() -> None:
    """Let LiteLLM end streams with an error where no chunk of the server has a ``finish_reason``.

    It would say ``stop`` by itself, as of a whole answer.
    """
    original = CustomStreamWrapper.finish_reason_handler

    def finish_reason_handler(stream: Any) -> Any:
        if not (stream.received_finish_reason or stream.intermittent_finish_reason):
            raise CustomLLMError(502, UNFINISHED)
        return original(stream)

    CustomStreamWrapper.finish_reason_handler = finish_reason_handler
