"""The dashboard's panels under load, by a real Prometheus, compared with what happened."""

from __future__ import annotations

import json
import math
import re
import selectors
import shutil
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from enginix.errors import MachineError
from enginix.ports import reserve_ports
from faults.setting import Served
from openai_standin import StandIn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[3]
PANELS = json.loads((ROOT / "nix/nixos/dashboard/enginix.json").read_text())["panels"]
PROMPT = "Once upon a time"


@dataclass
class Prometheus:
    """A running Prometheus."""

    url: str
    stored: dict[str, float] = field(default_factory=dict)

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=60).json()
        assert answer["status"] == "success", answer
        return [(row["metric"], float(row["value"][1])) for row in answer["data"]["result"]]


# Panels of software that does not run here; their names are of its source.
ELSEWHERE = re.compile(r"(GPU|TensorRT-LLM:|trtllm-serve:)")


def panel(title: str) -> list[str]:
    """Return the queries of a panel, with all values of its variables."""
    [found] = [p for p in PANELS if p["title"] == title]
    return [re.sub(r"\$(server|model|client)\b", ".*", t["expr"]) for t in found["targets"]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's Prometheus, unpacked."""
    directory = tmp_path_factory.mktemp("prometheus")
    if shutil.which("apt-get") is None:
        pytest.skip("there is no apt-get on this machine, which brings Prometheus")
    words = ["apt-get", "-q", "download", "prometheus"]
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"apt-get brings no Prometheus: {done.stderr.strip()[-200:]}")
    [package] = directory.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, directory / "root"], check=True)
    return directory / "root" / "usr" / "bin"


@pytest.fixture(scope="module")
def paced() -> Iterator[StandIn]:
    """A stand-in whose tokens come at times of its own, far longer than a busy machine's delays."""
    server = StandIn()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def direct(triton: Callable[..., Any]) -> Iterator[Served]:
    """A server that no gateway asks."""
    with triton() as served:
        yield served


@pytest.fixture(scope="module")
def gateway(
    start_gateway: Callable[..., Any], tiny: Served, standin: StandIn, paced: StandIn
) -> Iterator[Any]:
    server = {"kind": "triton", "url": tiny.client.url, "model": "ensemble"}
    other = {"kind": "openai", "url": f"{standin.url}/v1", "model": "mine"}
    slow = {"kind": "triton", "url": paced.url, "model": "ensemble"}
    alice = {"keyFile": "alice", "models": ["tiny"]}
    models = {"tiny": [server], "other": [other], "paced": [slow]}
    description = {"models": models, "clients": {"alice": alice}}
    with start_gateway({**description, "metricsKeyFile": "monitor"}) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def prometheus(
    program: Path, gateway: Any, tiny: Served, direct: Served, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Prometheus with the jobs of nix/nixos/monitoring.nix."""
    directory = tmp_path_factory.mktemp("scrapes")
    [port] = reserve_ports("127.0.0.1", [("prometheus", 0)])
    authorization = {"credentials_file": str(gateway.log.parent / "monitor")}
    jobs = [
        {
            "job_name": "enginix",
            "static_configs": [
                {"targets": [f"127.0.0.1:{served.metrics}"], "labels": {"server": name}}
                for name, served in (("tiny", tiny), ("direct", direct))
            ],
        },
        {
            "job_name": "enginix-gateway",
            "static_configs": [{"targets": [f"127.0.0.1:{gateway.port}"]}],
            "authorization": authorization,
        },
    ]
    # JSON is YAML.
    settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    (directory / "prometheus.yml").write_text(json.dumps(settings))
    words = [f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    words.append(f"--web.listen-address=127.0.0.1:{port}")
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([program / "prometheus", *words], stdout=log, stderr=log)
    running = Prometheus(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                if sum(value for _, value in running.query("up")) == 3:
                    break
            except (httpx.HTTPError, ValueError):
                pass
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.5)
        # Several scrapes before the load.
        time.sleep(4)
        yield running
    finally:
        process.terminate()
        process.wait(60)


@dataclass
class Load:
    """What clients saw; times in seconds."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    most_running: float = 0
    most_waiting: float = 0
    begin: float = 0
    seconds: float = 0


@pytest.fixture(scope="module")
def load(gateway: Any, prometheus: Prometheus, tiny: Served) -> Load:
    """Drives 72 streams at once, more than the batch holds, beside refused requests and another model."""
    load, lock = Load(), threading.Lock()
    load.begin = time.monotonic()
    # One for all threads: to make a client takes longer than an answer.
    clients = [gateway.client(gateway.operator), gateway.client(gateway.alice)]

    def stream(number: int) -> None:
        client = clients[number % 2]
        begin = time.monotonic()
        times = []
        chunks = client.completions.create(
            model="tiny",
            prompt=f"{PROMPT} {number}",
            max_tokens=64,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        for chunk in chunks:
            if chunk.choices and chunk.choices[0].text:
                times.append(time.monotonic())
            usage = chunk.usage
        with lock:
            load.first.append(times[0] - begin)
            load.between.append((times[-1] - times[0]) / (usage.completion_tokens - 1))
            load.whole.append(time.monotonic() - begin)
            load.prompt_tokens += usage.prompt_tokens
            load.completion_tokens += usage.completion_tokens

    def refused(number: int) -> None:
        body = {"model": "tiny", "prompt": "word " * 3000 if number % 2 else "x", "temperature": 1.0}
        body["max_tokens"] = 5 if number % 2 else -5
        headers = {"Authorization": f"Bearer {gateway.operator}"}
        answer = httpx.post(f"{gateway.url}/v1/completions", json=body, headers=headers, timeout=600)
        assert answer.status_code == 400

    with ThreadPoolExecutor(80) as pool:
        streams = [pool.submit(stream, number) for number in range(72)]
        asked = [pool.submit(refused, number) for number in range(8)]
        while not all(s.done() for s in streams):
            for title, name in (("running", "most_running"), ("waiting for a first token", "most_waiting")):
                rows = prometheus.query(panel(f"Gateway: {title}")[0])
                setattr(load, name, max(getattr(load, name), sum(value for _, value in rows)))
            rows = prometheus.query(panel("Requests under way")[0])
            for row, value in (r for r in rows if r[0]["server"] == "tiny"):
                state = row["state"]
                prometheus.stored[state] = max(prometheus.stored.get(state, 0), value)
            time.sleep(0.5)
        for done in (*streams, *asked):
            done.result()
    for _ in range(3):
        client = gateway.client(gateway.operator)
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
    assert httpx.get(f"{gateway.url}/v1/models", timeout=600).status_code == 401
    # A few scrapes after the load.
    time.sleep(5)
    load.seconds = time.monotonic() - load.begin
    return load


def amount(rows: list[tuple[dict[str, str], float]], **labels: str) -> float:
    """Return the number of events behind rates over 5 minutes."""
    return sum(v for row, v in rows if all(row.get(k) == x for k, x in labels.items())) * 300


def test_prometheus_reads_every_query(prometheus: Prometheus) -> None:
    for found in PANELS:
        for expression in panel(found["title"]):
            prometheus.query(expression)


# Prometheus extends what it saw to the bounds of its scrapes, and cannot see between two of them.
NEARLY = 0.15


def test_the_gateways_requests(prometheus: Prometheus, load: Load) -> None:
    rows = prometheus.query(panel("Gateway: answers")[0])
    assert amount(rows, model="tiny", client="alice") == pytest.approx(36, rel=NEARLY)
    assert amount(rows, model="tiny", client="operator") == pytest.approx(36, rel=NEARLY)
    assert amount(rows, model="other", client="operator") == pytest.approx(3, rel=NEARLY)
    rows = prometheus.query(panel("Gateway: refused")[0])
    assert amount(rows, model="tiny", client="operator", status="400") == pytest.approx(8, rel=NEARLY)
    assert amount(rows, client="alice") == 0 and amount(rows, status="401") > 0.5
    assert amount(prometheus.query(panel("Gateway: failed, and left by their clients")[0])) == 0
    # A scrape a second of a busy machine does not see all 72 at once.
    assert 16 <= load.most_running <= 80 and 1 <= load.most_waiting <= 80
    for title in ("Gateway: running", "Gateway: waiting for a first token"):
        assert sum(value for _, value in prometheus.query(panel(title)[0])) == 0
    answering, servers = map(prometheus.query, panel("Gateway: servers that answer"))
    assert [v for _, v in answering] == [v for _, v in servers] == [1, 1, 1]


def test_the_gateways_tokens(prometheus: Prometheus, load: Load) -> None:
    rows = prometheus.query(panel("Gateway: tokens in")[0])
    assert amount(rows, model="tiny") == pytest.approx(load.prompt_tokens, rel=NEARLY)
    rows = prometheus.query(panel("Gateway: tokens out")[0])
    assert amount(rows, model="tiny") == pytest.approx(load.completion_tokens, rel=NEARLY)
    assert amount(rows, model="other") == pytest.approx(3, rel=NEARLY)


def test_the_gateways_times(prometheus: Prometheus, gateway: Any, paced: StandIn) -> None:
    """Means lie between what the server took and what the clients saw; quantiles in the right bucket."""
    paced.pauses, paced.pieces = (0.75, 0.35), list("abcdefgh")

    def stream(_: int) -> list[float]:
        begin = time.monotonic()
        chunks = client.completions.create(model="paced", prompt="x", stream=True)
        return [time.monotonic() - begin for c in chunks if c.choices and c.choices[0].text]

    client = gateway.client()
    with ThreadPoolExecutor(6) as pool:
        seen = list(pool.map(stream, range(6)))
    time.sleep(5)
    for title, of, bounds in (
        ("time to the first token", lambda t: t[0], (0.5, 1.0)),
        ("time between tokens", lambda t: (t[-1] - t[0]) / (len(t) - 1), (0.25, 0.5)),
        ("time of an answer", lambda t: t[-1], (2.5, 5.0)),
    ):
        mean, median, most = (
            next(v for row, v in prometheus.query(q) if row["model"] == "paced")
            for q in panel(f"Gateway: {title}")
        )
        served, clients = (statistics.mean(map(of, times)) for times in (paced.paced, seen))
        # Of the first token's delay a part may be made good until the last.
        assert 0.9 * served <= mean <= 1.1 * clients, (title, served, mean, clients)
        assert bounds[0] <= median <= bounds[1] and median <= most < math.inf, (title, median, most)


def stream_directly(port: int, number: int, tokens: int) -> list[tuple[float, float]]:
    """Ask so many streams at once with as little work as possible; return first and last times of each."""
    selector = selectors.DefaultSelector()
    times: dict[Any, list[float]] = {}
    for n in range(number):
        question = {"text_input": f"{PROMPT} {n}", "max_tokens": tokens, "end_id": -1, "stream": True}
        body = json.dumps(question).encode()
        head = "POST /v2/models/ensemble/generate_stream HTTP/1.1\r\nHost: x\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", port), timeout=300)
        times[connection] = [time.monotonic()]
        connection.sendall(head.encode() + body)
        selector.register(connection, selectors.EVENT_READ)
    running = set(times)
    while running:
        for key, _ in selector.select(300):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            raw = connection.recv(1 << 16)
            assert raw, "the stream broke off"
            if b"data: " in raw:
                times[connection].append(time.monotonic())
            if b'"finish_reason":"length"' in raw:
                selector.unregister(connection)
                running.discard(connection)
                connection.close()
    return [(seen[1] - seen[0], seen[-1] - seen[0]) for seen in times.values()]


def test_the_servers_panels(prometheus: Prometheus, direct: Served) -> None:
    """72 streams at once, of which the batch holds 64, and 5 refused requests, at a server of its own."""

    def rows(title: str, number: int = 0) -> list[tuple[dict[str, str], float]]:
        return [r for r in prometheus.query(panel(title)[number]) if r[0]["server"] == "direct"]

    [(_, before)] = rows("Triton: requests handed to tensorrt_llm")
    streams, tokens = 72, 300
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(stream_directly, int(direct.client.url.rsplit(":", 1)[1]), streams, tokens)
        most: dict[str, float] = {}
        while not asked.done():
            for row, value in rows("Requests under way"):
                most[row["state"]] = max(most.get(row["state"], 0), value)
            time.sleep(0.2)
        seen = asked.result()
    for _ in range(5):
        with pytest.raises(MachineError, match="the engine"):
            direct.client.generate("ensemble", {"text_input": "word " * 3000, "max_tokens": 5})
    time.sleep(5)
    assert amount(rows("Answers")) == pytest.approx(streams, rel=NEARLY)
    assert amount(rows("Failures"), outcome="refused") == pytest.approx(5, rel=NEARLY)
    assert amount(rows("Failures"), outcome="full") == amount(rows("Failures"), outcome="failed") == 0
    assert 8 <= most["running"] <= 64
    assert sum(v for _, v in rows("Requests under way")) == 0
    assert amount(rows("Tokens", 1)) == pytest.approx(streams * tokens, rel=NEARLY)
    times = []
    for title, clients in (
        ("Time to the first token", [first for first, _ in seen]),
        ("Time between tokens", [(last - first) / (tokens - 1) for first, last in seen]),
        ("Time of an answer", [last for _, last in seen]),
    ):
        [(_, microseconds)] = rows(title)
        times.append(microseconds / 1e6)
        mean = statistics.mean(clients)
        # Clients see what the server saw, and the way.
        assert 0.5 * mean <= times[-1] <= 1.1 * mean, (title, times[-1], mean)
    assert times[0] + (tokens - 1) * times[1] == pytest.approx(times[2], rel=0.1)
    [(_, waited)] = rows("Waiting for a place")
    # Eight of 72 waited until others had ended, which is most of an answer's time.
    assert 0.2 * 8 / 72 * times[2] < waited / 1e6 < times[0]
    # Of Triton's own counts none is of the ensemble's requests.
    assert before == rows("Triton: requests handed to tensorrt_llm")[0][1] == 0


def test_every_panel_is_compared_or_runs_elsewhere() -> None:
    source = Path(__file__).read_text()
    for found in PANELS:
        title = found["title"]
        if not ELSEWHERE.match(title):
            assert f'"{title}"' in source or f'"{title.removeprefix("Gateway: ")}"' in source, title


def test_names_of_metrics_are_known_to_prometheus(
    prometheus: Prometheus, program: Path, gateway: Any
) -> None:
    """`promtool check metrics` reads the gateway's page and finds no fault."""
    key = (gateway.log.parent / "monitor").read_text().strip()
    page = httpx.get(f"{gateway.url}/metrics", headers={"Authorization": f"Bearer {key}"}, timeout=600).text
    checked = subprocess.run(
        [program / "promtool", "check", "metrics"], input=page, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
