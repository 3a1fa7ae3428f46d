"""A stand-in for an engine's own OpenAI server: lists one model, says one word to whoever has the key."""

import argparse
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BEGUN = time.monotonic()
LOADS_SECONDS = 1.0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer({"data": [{"id": "stand-in"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({"choices": [{"message": {"role": "assistant", "content": "word"}}]})

    def _answer(self, body: object) -> None:
        status = 200
        if time.monotonic() - BEGUN < LOADS_SECONDS:
            status, body = 503, {"error": "loading"}
        elif self.headers.get("Authorization") != f"Bearer {key()}":
            status, body = 401, {"error": "who are you?"}
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def key() -> str:
    return (Path(os.environ["CREDENTIALS_DIRECTORY"]) / "api-key").read_text().strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    args = parser.parse_args()
    key()
    ThreadingHTTPServer((args.host, args.port), Handler).serve_forever()
