"""Small bodies that mean nothing, at each model of a running server: every answer comes, the server lives.

    python tests/faults/small_bodies.py [--count 10000] [--seed 1]

First every pair of inputs that are empty and nothing else, by HTTP and by gRPC, in the shapes that emptiness
can have; then random bodies of a few inputs each. The Python that runs it needs the development environment,
and python/ of this repository in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import http.client
import itertools
import json
import math
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enginix.triton import contract

MODELS = contract.load_reference_contract()
SIZES = {"INT32": 4, "INT64": 8, "UINT64": 8, "FP32": 4, "BOOL": 1}
VALUES: tuple[Any, ...] = (
    *([], [[]], [[], []], "", [""], None, {}, [None], [1], [1, 2], ["a"], 0, 1, -1, 2**31, 2**63, 2**64),
    *(-(2**63), 1e308, -0.0, 0.5, True, "x", "\ud800", "a\0b", [[1]], ["a", 1], "NaN", "[]", "{}", 10**400),
)
OTHER = ("", "x", "id", "parameters", "enginix_key", "text_input ", "\0", "random_seed")

# An input as gRPC carries it: name, datatype, shape.
Tensor = tuple[str, str, tuple[int, ...]]
# ("http", model, body) or ("grpc", model, tensors).
Request = tuple[str, str, Any]


def inputs(model: str) -> dict[str, tuple[str, int]]:
    """Name → datatype and number of dimensions with the rows."""
    return {
        t.name: ("BYTES" if t.type == "STRING" else t.type, 1 + len(t.dims)) for t in MODELS[model].inputs
    }


def empty_pairs() -> Iterator[Request]:
    """Each two inputs empty, and nothing else; and each alone, and all of them."""
    for model in MODELS:
        known = inputs(model)
        names = [*((n,) for n in known), *itertools.combinations(known, 2), tuple(known)]
        for chosen in names:
            yield "http", model, {n: [] for n in chosen}
            for rows in (0, 1):
                yield (
                    "grpc",
                    model,
                    [(n, known[n][0], (rows, *([1] * (known[n][1] - 2)), 1 - rows)) for n in chosen],
                )
            yield "grpc", model, [(n, known[n][0], (0,) * known[n][1]) for n in chosen]


def random_requests(seed: int) -> Iterator[Request]:
    """Without end: some inputs, some names of none, some values of the wrong type or shape."""
    chance = random.Random(seed)
    while True:
        model = chance.choice(list(MODELS))
        known = inputs(model)
        names = chance.sample(list(known), chance.randrange(5))
        if chance.random() < 0.6:
            body = {n: chance.choice(VALUES) for n in [*names, *chance.sample(OTHER, chance.randrange(2))]}
            yield "http", model, body
        else:
            shapes = [tuple(chance.choice((0, 0, 1, 1, 2)) for _ in range(known[n][1])) for n in names]
            types = [chance.choice((known[n][0], known[n][0], "INT32", "BYTES")) for n in names]
            yield "grpc", model, list(zip(names, types, shapes, strict=True))


class Asked:
    """Sends requests to a server and counts what comes.

    Args:
        http: port.
        grpc: port.
    """

    def __init__(self, http: int, grpc: int) -> None:
        import grpc as rpc
        from tritonclient.grpc import service_pb2_grpc

        self._http = http
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(rpc.insecure_channel(f"127.0.0.1:{grpc}"))
        self.answers: collections.Counter[str] = collections.Counter()
        self.unanswered: list[Request] = []

    def send(self, request: Request) -> None:
        """One request; what gets no answer within 20 s, or a broken connection, is kept."""
        kind, model, given = request
        answer = self._by_http(model, given) if kind == "http" else self._by_grpc(model, given)
        self.answers[f"{kind} {answer}"] += 1
        if answer == "none":
            self.unanswered.append(request)

    def _by_http(self, model: str, body: dict[str, Any]) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._http, timeout=20)
        try:
            path = random.Random(len(body)).choice(("generate", "generate_stream"))
            connection.request("POST", f"/v2/models/{model}/{path}", json.dumps(body))
            response = connection.getresponse()
            response.read()
            return str(response.status)
        except (OSError, http.client.HTTPException):
            return "none"
        finally:
            connection.close()

    def _by_grpc(self, model: str, tensors: list[Tensor]) -> str:
        import grpc as rpc
        from tritonclient.grpc import service_pb2

        message = service_pb2.ModelInferRequest(model_name=model)
        for name, datatype, shape in tensors:
            made = message.inputs.add(name=name, datatype=datatype)
            made.shape.extend(shape)
            size = math.prod(shape)
            data = b"\1\0\0\0a" * size if datatype == "BYTES" else bytes(SIZES[datatype] * size)
            message.raw_input_contents.append(data)
        try:
            # To its end: a request that Triton never lets go of keeps the stream open.
            answers = list(self._stub.ModelStreamInfer(iter([message]), timeout=20))
            return "refused" if any(a.error_message for a in answers) else "answered"
        except rpc.RpcError as e:
            lost = (rpc.StatusCode.UNAVAILABLE, rpc.StatusCode.DEADLINE_EXCEEDED)
            return "none" if e.code() in lost else "refused"


def send_all(asked: Asked, requests: Iterator[Request], workers: int = 8) -> None:
    """Sends all of them, several at once; stops at the first that gets no answer."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        while batch := list(itertools.islice(requests, 200)):
            list(pool.map(asked.send, batch))
            if asked.unanswered:
                return


def main() -> int:
    from setting import Setting

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000, metavar="N", help="random bodies")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Setting(Path(directory)).serve() as served:
        asked = Asked(int(served.client.url.rsplit(":", 1)[1]), served.grpc)
        question = {"text_input": "Permission is hereby granted", "max_tokens": 16}
        before = served.client.generate("ensemble", question)["text_output"]
        send_all(asked, empty_pairs())
        send_all(asked, itertools.islice(random_requests(args.seed), args.count))
        print(dict(sorted(asked.answers.items())))
        if asked.unanswered or served.process.poll() is not None:
            print("no answer to:", asked.unanswered[:3])
            return 1
        assert served.client.generate("ensemble", question)["text_output"] == before
    # Each request has ended: SIGTERM waited for none.
    print(f"alive, and ended with status {served.process.returncode}")
    return served.process.returncode


if __name__ == "__main__":
    sys.exit(main())
