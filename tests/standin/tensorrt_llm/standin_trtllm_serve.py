"""Stand-in for trtllm-serve: its options, and an OpenAI interface that echoes, and streams completions."""

import argparse
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from . import __version__
from .standin import contract, sms

KINDS = {"integer": int, "float": float}


def parser():
    """Every option of the contract, and no other; a choice's alias is taken as well."""
    made = argparse.ArgumentParser(prog="trtllm-serve", allow_abbrev=False)
    for row in contract("serve_options")["options"]:
        if row.get("is_flag"):
            made.add_argument(*row["flags"], action="store_true")
            continue
        choices = [*row["choices"], *row.get("aliases", {})] if "choices" in row else None
        kind = KINDS.get(row["type"], str)
        if row["flags"] == ["model"]:
            made.add_argument("model")
        else:
            made.add_argument(*row["flags"], type=kind, default=row["default"], choices=choices)
    return made


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/v1/models":
            self.answer({"data": [{"id": "stand-in"}]})
        else:
            self.answer({"status": "ready", "version": __version__})

    def stream(self, tokens):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        usage = {"prompt_tokens": 1, "completion_tokens": tokens}
        pieces = [{"choices": [{"text": "x"}]}] * tokens
        for piece in [*pieces, {"choices": [], "usage": usage}]:
            self.wfile.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/completions" and asked.get("stream"):
            self.stream(asked["max_tokens"])
            return
        said = asked["messages"][-1]["content"]
        self.answer({"choices": [{"message": {"role": "assistant", "content": f"stand-in: {said}"}}]})


def main():
    args = parser().parse_args()
    if not sms():
        raise RuntimeError("No CUDA GPUs are available")
    model = Path(args.model)
    config = json.loads((model / "config.json").read_text())
    engine = "pretrained_config" in config and "build_config" in config
    if engine:
        assert args.backend in ("tensorrt", "trt"), "engine_dir must be None"
        if not args.tokenizer and not (model / "tokenizer_config.json").exists():
            raise ValueError("no tokenizer in the engine directory")
        assert config["version"] == __version__, "expecting library version"
    if args.config:
        json.loads(Path(args.config).read_text())
    server = ThreadingHTTPServer((args.host, args.port), Handler)
    print(f"stand-in trtllm-serve on {server.server_address[1]}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
