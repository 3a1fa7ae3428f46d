"""Stand-in for Triton's OpenAI frontend: its options by version, its endpoints, its restricted APIs.

It takes the options that main.py of the image's Triton has and refuses all others, imports the bindings,
loads the repository as the stand-in tritonserver does, and answers on OpenAI's and KServe's ports. No model.
"""

import argparse
import json
import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import tritonfrontend
import tritonserver
from tensorrt_llm import standin_tritonserver

assert tritonserver.STANDIN and tritonfrontend.STANDIN
ENDPOINTS = {
    "inference": [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/embeddings")],
    "model-repository": [("GET", "/v1/models"), ("POST", "/v1/models/")],
    "metrics": [("GET", "/metrics")],
    "health": [("GET", "/health/ready")],
}


def arguments(version):
    found = argparse.ArgumentParser()
    found.add_argument("--model-repository", required=True)
    found.add_argument("--backend", choices=["vllm", "tensorrtllm"])
    for name in ("tokenizer", "lora-separator", "tool-call-parser", "chat-template"):
        found.add_argument(f"--{name}")
    found.add_argument("--tritonserver-log-verbose-level", type=int, default=0)
    found.add_argument("--host", default="0.0.0.0")
    found.add_argument("--default-max-tokens", type=int, default=16)
    found.add_argument("--openai-port", type=int, default=9000)
    levels = ["debug", "info", "warning", "error", "critical", "trace"]
    found.add_argument("--uvicorn-log-level", choices=levels, default="info")
    found.add_argument("--openai-restricted-api", nargs=3, action="append", default=[])
    found.add_argument("--enable-kserve-frontends", action="store_true")
    found.add_argument("--kserve-http-port", type=int, default=8000)
    found.add_argument("--kserve-grpc-port", type=int, default=8001)
    if version >= (2, 68):
        found.add_argument("--model-control-mode", choices=["none", "explicit"], default="none")
        found.add_argument("--load-model", action="append")
    if version >= (2, 70):
        found.add_argument("--http-max-input-size", type=int, default=64 << 20)
    if version >= (2, 71):
        found.add_argument("--max-tool-call-parse-bytes", type=int, default=128 << 10)
    return found


def load(repository):
    """Names of the models, read as the stand-in tritonserver reads them."""
    models = sorted(p.name for p in repository.iterdir() if p.is_dir())
    for name in models:
        text = (repository / name / "config.pbtxt").read_text()
        if f'name: "{name}"' not in text:
            standin_tritonserver.fail(f"failed to load '{name}' version 1: Invalid argument: name")
        print(f"Found model: name='{name}'", flush=True)
    return models


class Door(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def open(self):
        for apis, header, value in self.server.restricted:
            for api in apis.split(","):
                for method, path in ENDPOINTS[api]:
                    if self.command == method and self.path.startswith(path):
                        if self.headers.get(header) != value:
                            self.answer(401, {"error": {"code": "invalid_auth"}})
                            return False
                        return True
        return True

    def do_GET(self):
        if not self.open():
            return
        if self.path == "/v1/models":
            rows = [{"id": name, "object": "model"} for name in self.server.models]
            self.answer(200, {"object": "list", "data": rows})
        else:
            self.answer(200 if self.path in ("/health/ready", "/metrics") else 404, {})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"] or 0)) or b"{}")
        if not self.open():
            return
        if self.path != "/v1/chat/completions":
            self.answer(404, {})
        elif asked["model"] not in self.server.models:
            self.answer(400, {"detail": f"Unknown model: {asked['model']}"})
        else:
            text = f"stand-in: {asked['messages'][-1]['content']}"
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.answer(200, {"model": asked["model"], "choices": [choice]})


def main():
    version = Path("/opt/tritonserver/TRITON_VERSION").read_text().strip()
    options = arguments(tuple(map(int, version.split(".")[:2]))).parse_args()
    for apis, _, _ in options.openai_restricted_api:
        if unknown := set(apis.split(",")) - set(ENDPOINTS):
            print(f"[ERROR] Failed to initialize FastAPI frontend: Unknown API {unknown}", file=sys.stderr)
            return 1
    if options.tokenizer is not None and not (Path(options.tokenizer) / "tokenizer.json").is_file():
        print(f"OSError: {options.tokenizer} has no tokenizer", file=sys.stderr)
        return 1
    if os.environ.get("TRTLLM_ORCHESTRATOR") != "1":
        print("error: leader mode", file=sys.stderr)
        return 1
    models = load(Path(options.model_repository))
    held, ending = [], threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    servers = [ThreadingHTTPServer((options.host, options.openai_port), Door)]
    servers[0].models, servers[0].restricted = models, options.openai_restricted_api
    if options.enable_kserve_frontends:
        held.append(socket.create_server((options.host, options.kserve_grpc_port)))
        kserve = ThreadingHTTPServer((options.host, options.kserve_http_port), standin_tritonserver.Handler)
        # The frontend's KServe endpoints have no restricted APIs.
        kserve.restricted, kserve.busy = [], standin_tritonserver.Busy()
        servers.append(kserve)
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("Application startup complete.", flush=True)
    ending.wait()
    print("Shutting down Triton OpenAI-Compatible Frontend...", flush=True)
    for server in servers:
        server.shutdown()
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
