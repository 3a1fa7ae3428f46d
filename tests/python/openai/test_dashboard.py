"""The dashboard's queries by a real Prometheus; requests and tokens of the gateway's panels under load."""

from __future__ import annotations

import json
import re
import shutil
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
def gateway(start_gateway: Callable[..., Any], tiny: Served, standin: StandIn) -> Iterator[Any]:
    server = {"kind": "triton", "url": tiny.client.url, "model": "ensemble"}
    other = {"kind": "openai", "url": f"{standin.url}/v1", "model": "mine"}
    alice = {"keyFile": "alice", "models": ["tiny"]}
    description = {"models": {"tiny": [server], "other": [other]}, "clients": {"alice": alice}}
    with start_gateway({**description, "metricsKeyFile": "monitor"}) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def prometheus(
    program: Path, gateway: Any, tiny: Served, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Prometheus with the jobs of nix/nixos/monitoring.nix."""
    directory = tmp_path_factory.mktemp("scrapes")
    [port] = reserve_ports("127.0.0.1", [("prometheus", 0)])
    authorization = {"credentials_file": str(gateway.log.parent / "monitor")}
    jobs = [
        {
            "job_name": "enginix",
            "static_configs": [{"targets": [f"127.0.0.1:{tiny.metrics}"], "labels": {"server": "tiny"}}],
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
                if sum(value for _, value in running.query("up")) == 2:
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
            for row, value in rows:
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
    assert [v for _, v in answering] == [v for _, v in servers] == [1, 1]


def test_the_gateways_tokens(prometheus: Prometheus, load: Load) -> None:
    rows = prometheus.query(panel("Gateway: tokens in")[0])
    assert amount(rows, model="tiny") == pytest.approx(load.prompt_tokens, rel=NEARLY)
    rows = prometheus.query(panel("Gateway: tokens out")[0])
    assert amount(rows, model="tiny") == pytest.approx(load.completion_tokens, rel=NEARLY)
    assert amount(rows, model="other") == pytest.approx(3, rel=NEARLY)


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
