"""The report of ``enginix serve`` on a server that has answered."""

from __future__ import annotations

import argparse
import json
from typing import Any

from enginix import console
from enginix.manifest import Manifest, explain_unverified
from enginix.serve.ask import ServerAnswer
from enginix.serve.ask import ask_server as answered
from enginix.serve.client import TritonClient
from enginix.serve.launch import LaunchSpec


def format_curl(client: TritonClient) -> str:
    """Return the shell command that sends the server a prompt."""
    body = json.dumps({"text_input": "Once upon a time", "max_tokens": 32})
    return f"curl -s {client.url}/v2/models/ensemble/generate -d '{body}'"


def ask_and_print(args: argparse.Namespace, client: TritonClient) -> ServerAnswer:
    """Send the prompt of --ask, print the answer as it comes, and return it."""

    console.print_piece(args.ask)
    answer = answered(client, args.ask, args.max_tokens, console.print_piece)
    console.print_piece("\n")
    if answer.streamed != answer.text:
        console.print_message("warning: the streamed text differs from the text of /generate")
    console.print_message(
        f"{answer.tokens} tokens, {answer.tokens_per_second:.1f} tokens/s, "
        f"first after {answer.first_token_seconds * 1000:.0f} ms, finish reason {answer.finish_reason}"
    )
    return answer


def describe_server(
    spec: LaunchSpec, repository: Manifest, seconds: float, answer: ServerAnswer | None
) -> dict[str, Any]:
    """Return a running server's description for --json."""
    server_status: dict[str, Any] = {
        "ready": True,
        "seconds": round(seconds, 3),
        "host": spec.endpoints.host,
        "httpPort": spec.endpoints.http,
        "grpcPort": spec.endpoints.grpc,
        "metricsPort": spec.endpoints.metrics,
        "warning": explain_unverified(repository),
    }
    if answer is not None:
        server_status["answer"] = {
            "text": answer.text,
            "streamed": answer.streamed,
            "tokens": answer.tokens,
            "tokensPerSecond": round(answer.tokens_per_second, 1),
            "firstTokenSeconds": round(answer.first_token_seconds, 4),
            "finishReason": answer.finish_reason,
        }
    return server_status
