"""Stand-in for tritonserver with its tensorrtllm backend: options, ranks, endpoints.

Texts are echoed. Token ids are continued by what the engine holds, where the image has enginix's executor.

Of the options it takes those of the version that the contract gives for this TensorRT-LLM, and refuses all
others. Rank 0 is ready when every other rank has come up, as MPI has it; the others end when rank 0 does. The
variable STANDIN says how a rank misbehaves: hang:RANK, die:RANK (exit status 1), kill:RANK (by a signal),
lose:RANK (it dies once the server is ready).
"""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from . import __version__
from .standin import misbehaves as misbehaved

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
SIZE = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
JOB = Path(os.environ.get("STANDIN_JOB", "/nonexistent"))
VERSIONS = {"1.1.0": "2.64.0", "1.2.1": "2.68.0"}


def fail(message):
    print(f"error: {message}", flush=True)
    sys.exit(1)


def parse(words):
    contract = json.loads((Path(__file__).parent / "contract" / "triton_flags.json").read_text())
    known = contract["flags"] | contract["added"].get(VERSIONS.get(__version__), {})
    spelled = {
        "bool": "true|false|True|False|TRUE|FALSE|1|0",
        "int": r"-?\d+",
        "float": r"[\d.]+",
        "string": ".+",
    }
    found = {}
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in known:
            fail(f"tritonserver: unrecognized option '{word}'")
        if known[name] == "switch":
            value = "true"
        elif not re.fullmatch(spelled[known[name]], value):
            fail(f"tritonserver: invalid value for --{name}: {value!r}")
        found.setdefault(name, []).append(value)
    return found


class Handler(BaseHTTPRequestHandler):
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
        for rule in self.server.restricted:
            apis, _, pair = rule.partition(":")
            header, _, key = pair.partition("=")
            closed = "shared-memory" in apis.split(",") and "sharedmemory" in self.path
            if closed and self.headers.get(header) != key:
                self.answer(403, {"error": f"This API is restricted, expecting header '{header}'"})
                return False
        return True

    def do_GET(self):
        if self.open():
            self.answer(200 if self.path == "/v2/health/ready" else 404, {})

    def do_POST(self):
        length = int(self.headers["content-length"] or 0)
        asked = json.loads(self.rfile.read(length) or b"{}")
        if not self.open():
            return
        with self.server.busy:
            if asked.get("text_input") == "slow":
                time.sleep(2)
            if "input_ids" in asked:
                self.answer(*self.server.continued(asked))
                return
            self.answer(200, {"text_output": f"stand-in: {asked.get('text_input')}"})


class Continued:
    """Token ids continued by the reference executor over the engine's weights; loaded when first asked."""

    def __init__(self, repository):
        self.repository, self.lock, self.subject = repository, threading.Lock(), None

    def __call__(self, asked):
        most = asked["request_output_len"]
        if misbehaved("loops"):
            return 200, {"output_ids": [9] * most}
        try:
            with self.lock:
                if self.subject is None:
                    from .standin_llm import EngineLLM

                    llm = EngineLLM.__new__(EngineLLM)
                    llm.given = {}
                    text = (self.repository / "tensorrt_llm" / "config.pbtxt").read_text()
                    (engine,) = re.findall(r'"gpt_model_path"\s*value \{\s*string_value: "([^"]+)"', text)
                    self.subject = llm.load(Path(engine))
                (tokens,) = self.subject.generate([asked["input_ids"]], most, frozenset())
        except Exception as e:
            return 400, {"error": f"stand-in: {type(e).__name__}: {e}"}
        return 200, {"output_ids": tokens}


def bound(host, port):
    listener = socket.create_server((host, port))
    return listener


class Busy:
    """Requests that are being answered."""

    def __init__(self):
        self.count, self.lock = 0, threading.Lock()

    def __enter__(self):
        with self.lock:
            self.count += 1

    def __exit__(self, *_):
        with self.lock:
            self.count -= 1


def misbehaves(how):
    return os.environ.get("STANDIN") == f"{how}:{RANK}"


def waiting(said=[0.0]):  # noqa: B006
    """A rank that waits says so now and then; one that hangs does not."""
    if time.monotonic() - said[0] > 0.3:
        said[0] = time.monotonic()
        print("waiting for the other ranks", flush=True)


def follow():
    """A rank above 0: never ready, ends with the leader."""
    while not (JOB / "ended").exists():
        if not (JOB / "ready").exists():
            waiting()
        if misbehaves("lose") and (JOB / "ready").exists():
            time.sleep(2)
            print("CUDA error: an illegal memory access was encountered", flush=True)
            os._exit(1)
        time.sleep(0.02)
    return 0


def lead(options):
    while not all((JOB / f"up{rank}").exists() for rank in range(1, SIZE)):
        waiting()
        time.sleep(0.02)

    def one(name, default=""):
        return options.get(name, [default])[-1]

    held = []
    if one("allow-grpc", "true") == "true":
        held.append(bound(one("grpc-address", "0.0.0.0"), int(one("grpc-port", "8001"))))
    if one("allow-metrics", "true") == "true":
        held.append(bound(one("metrics-address", "0.0.0.0"), int(one("metrics-port", "8002"))))
    server = ThreadingHTTPServer((one("http-address", "0.0.0.0"), int(one("http-port", "8000"))), Handler)
    server.daemon_threads = True
    server.restricted, server.busy = options.get("http-restricted-api", []), Busy()
    server.continued = Continued(Path(options["model-repository"][-1]))
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if JOB.is_dir():
        (JOB / "ready").touch()
    print("Started HTTPService", flush=True)
    ending.wait()
    print("Waiting for in-flight requests to complete.", flush=True)
    server.shutdown()
    server.server_close()
    deadline = time.monotonic() + int(one("exit-timeout-secs", "30"))
    while server.busy.count and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.05)
    if JOB.is_dir():
        (JOB / "ended").touch()
    return 0 if not server.busy.count else 1


def main():
    options = parse(sys.argv[1:])
    for needed in ("model-repository",):
        if needed not in options:
            fail(f"--{needed} is required")
    repository = Path(options["model-repository"][-1])
    models = sorted(p for p in repository.iterdir() if p.is_dir())
    wanted = options.get("load-model")
    if wanted and options.get("model-control-mode") != ["explicit"]:
        fail("Error: Use of '--load-model' requires setting '--model-control-mode=explicit' as well.")
    for model in models:
        if wanted and model.name not in wanted:
            continue
        text = (model / "config.pbtxt").read_text()
        if f'name: "{model.name}"' not in text:
            fail(f"failed to load '{model.name}' version 1: Invalid argument: name")
        for path in re.findall(
            r'key: "(?:gpt_model_path|tokenizer_dir|enginix_path)"\s*value \{\s*string_value: "([^"]+)"', text
        ):
            if not Path(path).is_dir():
                fail(f"failed to load '{model.name}' version 1: Internal: {path} is not there")
        print(f"loading: {model.name}:1", flush=True)
    if misbehaves("die"):
        fail("failed to load 'tensorrt_llm' version 1: Internal: out of memory on this rank")
    if misbehaves("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if misbehaves("hang"):
        print("NCCL INFO Bootstrap", flush=True)
        while True:
            time.sleep(3600)
    if RANK:
        for endpoint in ("http", "grpc", "metrics"):
            assert options.get(f"allow-{endpoint}") == ["false"], f"rank {RANK} would bind {endpoint}"
        assert wanted == ["tensorrt_llm"], "a rank above 0 loads tensorrt_llm alone"
        (JOB / f"up{RANK}").touch()
        return follow()
    return lead(options)


if __name__ == "__main__":
    sys.exit(main())
