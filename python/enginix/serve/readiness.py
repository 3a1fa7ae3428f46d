"""Readiness: a generation has succeeded, and its tokens are the engine's golden ones."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from enginix.console import Heartbeat
from enginix.errors import GateError, MachineError
from enginix.kinds.registry import DEFAULT_KIND, find_triton_support
from enginix.manifest import GoldenAnswer as GoldenAnswer
from enginix.manifest import read_golden as read_golden
from enginix.serve.client import TritonClient
from enginix.triton.contract import ENSEMBLE, EXECUTOR, EXECUTOR_KEY

if TYPE_CHECKING:
    from enginix.serve.supervisor import SupervisedServer


def make_probe(kind: str) -> tuple[str, dict[str, Any]]:
    """Return model and request that pass through all models of a repository once, text to text."""
    support = find_triton_support(kind)
    return ENSEMBLE if support.has_ensemble else EXECUTOR, dict(support.probe)


def await_ready(
    server: SupervisedServer,
    client: TritonClient,
    expected: GoldenAnswer | None,
    timeout: float,
    kind: str = DEFAULT_KIND,
) -> float:
    """Wait until the server answers; returns the seconds it took.

    Args:
        expected: golden answer; checked for kinds with an executor that takes tokens (``llmapi`` takes text).

    Raises:
        StartError: the server ended, or was not ready in time.
        GateError: the answer has other tokens than the engine's golden ones.
    """
    start = time.monotonic()
    heartbeat = Heartbeat(30)
    while not client.ready():
        server.check_running()
        waited = time.monotonic() - start
        if waited > timeout:
            raise server.not_ready(waited)
        heartbeat.beat(f"tritonserver: loading since {waited:.0f} s")
        time.sleep(0.1)
    try:
        model, request = make_probe(kind)
        if expected is not None and model == ENSEMBLE:
            _check_golden(client, expected, server.executor_key)
        client.generate(model, request)
    except MachineError as e:
        # What starts a server is not there where one is only asked.
        from enginix.serve.supervisor import StartError

        server.check_running()
        raise StartError(
            f"loaded, but does not answer: {e.what}",
            where="tritonserver",
            fix="its last lines:\n    " + "\n    ".join(server.last_lines()),
        ) from e
    return time.monotonic() - start


def _check_golden(client: TritonClient, expected: GoldenAnswer, key: str) -> None:
    answer = client.generate(
        EXECUTOR,
        {
            "input_ids": list(expected.prompt),
            "input_lengths": len(expected.prompt),
            "request_output_len": len(expected.tokens),
            "end_id": -1,
            "exclude_input_in_output": True,
            # Kind reference reads this key; NVIDIA's models ignore it.
            EXECUTOR_KEY: key,
        },
    )
    output_ids = answer.get("output_ids")
    output_ids = output_ids if isinstance(output_ids, list) else [output_ids]
    if tuple(output_ids) != expected.tokens:
        raise GateError(
            f"the golden prefix continues with {output_ids}, expected {list(expected.tokens)}",
            where=EXECUTOR,
            fix="its results differ from those at build time; build the engine again",
        )
