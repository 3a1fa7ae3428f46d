"""A stand-in of an OpenAI endpoint whose delays are known; writes down what it did, a line of JSON a request.

    python tests/bench/load/exact_server.py TRUTH.jsonl [--close]

It prints its port. The first token is written FIRST seconds after a request has arrived, and each further one
STEP seconds after the one before, by the clock: a late token delays no other. --close ends the connection
after each answer, as servers of HTTP/1.0 do. One process and no threads; the last millisecond before each
token is waited for in a loop, so that the timer's coarseness is not measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TextIO

FIRST, STEP = 0.05, 0.01
SPIN = 0.001  # seconds


def frame_chunk(payload: bytes) -> bytes:
    """Return a chunk of HTTP's chunked encoding."""
    return b"%x\r\n%s\r\n" % (len(payload), payload)


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes] | None:
    """Return path and body; None at the end of the connection."""
    line = await reader.readline()
    if not line:
        return None
    length = 0
    while (header := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = header.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    return line.split()[1], await reader.readexactly(length)


async def wait_until(moment: float) -> None:
    """Return at a moment of the monotonic clock, or at once after it."""
    await asyncio.sleep(max(0.0, moment - SPIN - time.monotonic()))
    while time.monotonic() < moment:
        pass


async def write_answer(writer: asyncio.StreamWriter, tokens: int, arrived: float) -> list[float]:
    """Stream an answer; return when each token was written."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    piece = frame_chunk(b'data: {"object": "text_completion", "choices": [{"text": "x"}]}\n\n')
    written = []
    for number in range(tokens):
        await wait_until(arrived + FIRST + number * STEP)
        writer.write(piece)
        written.append(time.monotonic())
    usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
    last = json.dumps({"object": "text_completion", "choices": [], "usage": usage}).encode()
    writer.write(frame_chunk(b"data: " + last + b"\n\n") + frame_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    await writer.drain()
    return written


async def serve_exactly(truth: TextIO, *, closes: bool) -> None:
    """Serve on a free port of loopback until the process ends."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await read_request(reader)) is not None:
                arrived = time.monotonic()
                path, body = request
                if not path.endswith(b"/completions"):
                    listed = json.dumps({"data": [{"id": "tiny"}]}).encode()
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(listed)}\r\n\r\n"
                    writer.write(head.encode() + listed)
                else:
                    written = await write_answer(writer, json.loads(body)["max_tokens"], arrived)
                    row = {"arrived": arrived, "written": written, "ended": time.monotonic()}
                    truth.write(json.dumps(row) + "\n")
                    truth.flush()
                if closes:
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with open(sys.argv[1], "w", encoding="utf-8") as opened:
        asyncio.run(serve_exactly(opened, closes="--close" in sys.argv[2:]))
