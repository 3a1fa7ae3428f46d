"""What clients do wrong over gRPC."""

from __future__ import annotations

import threading
from typing import Any

from fault_table import fault
from questions import PROMPT, whole
from setting import Setting


@fault
def grpc(setting: Setting) -> str:
    """gRPC with tritonclient: stream, cancel with streaming and without, wrong shapes and names"""
    import numpy as np
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    def inputs(tokens: int, name: str = "text_input", rows: int = 1, streaming: bool = True) -> list[Any]:
        text = triton.InferInput(name, [rows, 1], "BYTES")
        text.set_data_from_numpy(np.array([[PROMPT]] * rows, np.object_))
        number = triton.InferInput("max_tokens", [1, 1], "INT32")
        number.set_data_from_numpy(np.array([[tokens]], np.int32))
        stream = triton.InferInput("stream", [1, 1], "BOOL")
        stream.set_data_from_numpy(np.array([[streaming]]))
        end = triton.InferInput("end_id", [1, 1], "INT32")
        end.set_data_from_numpy(np.array([[-1]], np.int32))
        return [text, number, stream, end]

    def answer(client: Any, given: list[Any]) -> tuple[str, str]:
        pieces: list[str] = []
        errors: list[str] = []
        done = threading.Event()

        def take(result: Any, error: Any) -> None:
            if error is not None:
                errors.append(str(error))
                done.set()
                return
            pieces.append(result.as_numpy("text_output").reshape(-1)[0].decode())
            if result.as_numpy("finish_reason").reshape(-1)[0]:
                done.set()

        client.start_stream(take)
        client.async_stream_infer("ensemble", given)
        assert done.wait(60), "no end"
        client.stop_stream()
        return "".join(pieces), " ".join(errors)

    with setting.serve() as s:
        expected = whole(s.client)
        with triton.InferenceServerClient(f"127.0.0.1:{s.grpc}") as client:
            assert answer(client, inputs(24)) == (expected, "")
            assert "unexpected inference input" in answer(client, inputs(4, "text"))[1]
            assert answer(client, inputs(4, rows=2))[1]
            for streaming in (True, False):
                seen = threading.Event()
                client.start_stream(lambda result, error, seen=seen: seen.set())
                client.async_stream_infer("ensemble", inputs(1900, streaming=streaming))
                assert seen.wait(60) if streaming else s.computes() and not seen.is_set()
                client.stop_stream(cancel_requests=True)
                # The 1900 tokens would take several times as long.
                s.await_idle(2)
            try:
                client.infer("ensemble", inputs(4))
                raise AssertionError("a decoupled model answered a single call")
            except InferenceServerException as e:
                assert "decoupled" in str(e)
        assert whole(s.client) == expected
    return "the same text as over HTTP; mistakes are errors; a cancelled request frees its place"
