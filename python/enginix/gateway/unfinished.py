"""Streams that end without a finish_reason: LiteLLM would say ``stop`` by itself, as of a whole answer."""

from __future__ import annotations

from typing import Any

from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
from litellm.llms.custom_llm import CustomLLMError

from enginix.gateway.response_rewrite import UNFINISHED


def refuse_unfinished_streams() -> None:
    """Let LiteLLM end streams with an error where no chunk of the server has a ``finish_reason``."""
    original = CustomStreamWrapper.finish_reason_handler

    def finish_reason_handler(stream: Any) -> Any:
        if not (stream.received_finish_reason or stream.intermittent_finish_reason):
            raise CustomLLMError(502, UNFINISHED)
        return original(stream)

    CustomStreamWrapper.finish_reason_handler = finish_reason_handler
