"""Stand-in for trtllm-serve: its options, and an OpenAI interface that echoes."""

import argparse
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from . import __version__
from .standin import sms

parser = argparse.ArgumentParser(prog="trtllm-serve", allow_abbrev=False)
parser.add_argument("model")
parser.add_argument("--backend", choices=["pytorch", "tensorrt", "trt", "_autodeploy"], default="pytorch")
parser.add_argument("--tokenizer")
parser.add_argument("--host", default="localhost")
parser.add_argument("--port", type=int, default=8000)
parser.add_argument("--log_level", default="info")
for name in (
    "max_beam_width",
    "max_batch_size",
    "max_num_tokens",
    "max_seq_len",
    "tp_size",
    "pp_size",
    "ep_size",
):
    parser.add_argument(f"--{name}", type=int)
parser.add_argument("--kv_cache_free_gpu_memory_fraction", type=float, default=0.9)
parser.add_argument("--extra_llm_api_options")
parser.add_argument("--reasoning_parser")
parser.add_argument("--tool_parser")
parser.add_argument("--chat_template")


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
        self.answer({"status": "ready", "version": __version__})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = asked["messages"][-1]["content"]
        self.answer({"choices": [{"message": {"role": "assistant", "content": f"stand-in: {said}"}}]})


def main():
    args = parser.parse_args()
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
    if args.extra_llm_api_options:
        json.loads(Path(args.extra_llm_api_options).read_text())
    server = ThreadingHTTPServer((args.host, args.port), Handler)
    print(f"stand-in trtllm-serve on {server.server_address[1]}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
