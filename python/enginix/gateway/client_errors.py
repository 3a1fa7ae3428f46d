"""Rewrite a Triton server's errors in the terms of OpenAI's interface.

Clients know neither Triton's inputs nor the engine; they look for OpenAI's parameters and codes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from enginix.gateway.request import PARAMETERS, RequestRejected
from enginix.tables import load_table

CONTEXT_CODE = "context_length_exceeded"
# Names of Triton's inputs that a message begins with -> parameters.
_NAMES = {
    "text_input": "prompt",
    "chat_template_args": "chat_template_kwargs",
    "stop_words": "stop",
    "end_id": "ignore_eos",
}
_BEGINNING = re.compile(rf"^({'|'.join(_NAMES)})\b")
# The model that computes, as the other models of its server name it, and its socket.
_EXECUTOR = re.compile(r"\btensorrt_llm, which computes,(?= is not reached)")
_SOCKET = re.compile(r"(?<=is not reached) \(/[^()]*\)")
_TOO_LONG = re.compile(r"^(\d+) prompt tokens; the engine holds (\d+)")
_NO_ROOM = re.compile(
    r"^max_tokens: (\d+) prompt tokens \+ (\d+) are above the engine's (\d+); at most (\d+) fit"
)
_ABOVE_LIMIT = re.compile(r"^max_tokens: \d+ is above this server's limit of \d+")
_TOO_MANY_CHARACTERS = re.compile(r"^(?:text_input|messages): (\d+) characters; the engine's (\d+) tokens")
_PARAMETER = re.compile(r"^(\w+)((?:\[\d+\][\w.\[\]]*)?)(?::| is )")


def rewrite_backend_error(message: str, status: int, model: str = "the model") -> RequestRejected:
    """Return a server's error for the client.

    Args:
        message: the error of Triton's model.
        model: the client's name of the model.
    """
    message = _SOCKET.sub("", _EXECUTOR.sub(lambda _: f"the server of {model}", message))
    if status != 400:
        # A full server may have a place at any moment, unlike one that cannot be reached.
        is_full = status == 429 or message.endswith(load_table("triton_errors")["later"])
        retry_after = 1 if is_full else None
        return RequestRejected(message, None, status, retry_after=retry_after)
    if match := _TOO_LONG.match(message):
        tokens, context_length = match.groups()
        return _context_length_error(f"{context_length} tokens. However, the {{param}} has {tokens} tokens")
    if match := _TOO_MANY_CHARACTERS.match(message):
        characters, context_length = match.groups()
        return _context_length_error(
            f"{context_length} tokens. However, the {{param}} has {characters} characters"
        )
    if match := _NO_ROOM.match(message):
        prompt, answer, context_length, fits = match.groups()
        details = (
            f"max_tokens: this model's maximum context length is {context_length} tokens. However, you "
            f"requested {int(prompt) + int(answer)} tokens ({prompt} in the prompt, {answer} in the answer); "
            f"at most {fits} fit"
        )
        return RequestRejected(details, "max_tokens", 400, CONTEXT_CODE)
    if _ABOVE_LIMIT.match(message):
        return RequestRejected(message, "max_tokens", 400, CONTEXT_CODE)
    message = _BEGINNING.sub(lambda m: _NAMES[m[1]], message)
    message = message.replace(
        "has no chat template; send text_input", "has no chat template; ask /v1/completions"
    )
    named = _PARAMETER.match(message)
    return RequestRejected(message, named[1] if named and named[1] in PARAMETERS else None, 400)


def restore_parameter_names(error: RequestRejected, body: Mapping[str, Any]) -> RequestRejected:
    """Return an error with the parameter name that this request used, where OpenAI has two names."""
    named = "messages" if "messages" in body else "prompt"
    message, param = error.message.replace("{param}", named), error.param
    if param == "{param}":
        param = named
    if param == "max_tokens" and body.get("max_completion_tokens") is not None:
        param = "max_completion_tokens"
        message = re.sub(r"^max_tokens\b", param, message)
    return RequestRejected(message, param, error.status, error.code, retry_after=error.retry_after)


def _context_length_error(details: str) -> RequestRejected:
    return RequestRejected(
        f"{{param}}: this model's maximum context length is {details}", "{param}", 400, CONTEXT_CODE
    )
