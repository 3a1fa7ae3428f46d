"""`enginix bench` against a server that knows when it wrote each piece, and regressions that are drawn."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginix.bench.load import RequestMix, RequestRecord, make_prompt, run_load
from enginix.bench.measurement import collect_samples, compare_measurements, describe_measurement, summarize
from enginix.cli import main
from enginix.errors import EndpointError, UsageError
from retries import hold_once


@dataclass
class Written:
    """What the server did for one prompt; times of the same clock as the client's."""

    arrived: float
    pieces: list[float] = field(default_factory=list)


@dataclass
class RecordingServer:
    """A stand-in of an OpenAI endpoint that answers in steps of a fixed time, and writes down when.

    Attributes:
        refuse: status and message of every completion; None answers.
    """

    url: str = ""
    step: float = 0.01
    fail_every: int = 0
    refuse: tuple[int, str] | None = None
    prompts: dict[str, Written] = field(default_factory=dict)
    running: int = 0
    most_running: int = 0


@contextmanager
def serve_recorded(**options: Any) -> Iterator[RecordingServer]:
    recording, lock = RecordingServer(**options), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": "tiny"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            arrived = time.monotonic()
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                written = recording.prompts[asked["prompt"]] = Written(arrived)
                recording.running += 1
                is_counted = True
                recording.most_running = max(recording.most_running, recording.running)
                fails = recording.fail_every and len(recording.prompts) % recording.fail_every == 0
            try:
                if recording.refuse is not None:
                    status, message = recording.refuse
                    body = json.dumps({"error": {"message": message}}).encode()
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                    return
                if fails:
                    self.send_error(503)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for _ in range(asked["max_tokens"]):
                    time.sleep(recording.step)
                    self.wfile.write(b'data: {"object": "text_completion", "choices": [{"text": "x"}]}\n\n')
                    self.wfile.flush()
                    written.pieces.append(time.monotonic())
                usage = {"prompt_tokens": 7, "completion_tokens": asked["max_tokens"]}
                self.wfile.write(
                    b"data: "
                    + json.dumps({"object": "text_completion", "choices": [], "usage": usage}).encode()
                    + b"\n\n"
                )
                # Before the last line, upon which the client may ask again.
                with lock:
                    recording.running -= 1
                is_counted = False
                self.wfile.write(b"data: [DONE]\n\n")
            finally:
                with lock:
                    recording.running -= is_counted

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    recording.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield recording
    finally:
        server.shutdown()
        server.server_close()


def test_figures_are_what_the_server_did() -> None:
    hold_once(_check_figures)


def _check_figures() -> None:
    mix = RequestMix(input_words=5, output_tokens=6, requests=8, concurrency=2, warmup=1)
    with serve_recorded() as server:
        records = run_load(server.url, "tiny", mix)
    assert server.most_running == 2 and len(records) == 8
    measured = [server.prompts[make_prompt(mix, number)] for number in range(8)]
    assert all(r.error is None and (r.input_tokens, r.output_tokens) == (7, 6) for r in records)
    samples = collect_samples(records)
    own_gaps = [(w.pieces[-1] - w.pieces[0]) / 5 for w in measured]
    # Both clocks are the same; between a write and its reading lies the machine's own delay.
    assert np.mean(samples["betweenTokensSeconds"]) == pytest.approx(np.mean(own_gaps), abs=0.01)
    own_first = np.mean([w.pieces[0] - w.arrived for w in measured])
    assert own_first - 0.001 <= np.mean(samples["firstTokenSeconds"]) <= own_first + 0.2
    assert min(samples["betweenTokensSeconds"]) >= 0.01 * 0.9


def test_latency_counts_from_when_a_request_was_due() -> None:
    """One place and requests twice as fast as it serves: the queue before it is the server's fault."""
    mix = RequestMix(input_words=3, output_tokens=4, requests=6, concurrency=1, rate=50, warmup=0)
    with serve_recorded(step=0.01) as server:
        records = run_load(server.url, "tiny", mix)
    assert [r.due for r in records] == pytest.approx([n / 50 for n in range(6)])
    latencies = [r.ended - r.due for r in records]
    assert latencies[-1] > latencies[0] + 5 * (0.04 - 0.02) * 0.9


def test_prompts_differ_and_are_the_same_again() -> None:
    mix = RequestMix(input_words=20)
    prompts = [make_prompt(mix, number) for number in range(-2, 50)]
    assert len(set(prompts)) == 52 and all(len(p.split()) == 20 for p in prompts)
    assert make_prompt(RequestMix(input_words=20), 3) == prompts[5]
    assert make_prompt(RequestMix(input_words=20, seed=1), 3) != prompts[5]


def test_failed_requests_are_counted_and_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with serve_recorded(step=0.001, fail_every=3) as server:
        words = ["bench", server.url, "--requests", "6", "--warmup", "0", "--output-tokens", "2", "--json"]
        assert main(words) == 1
    measured = json.loads(capsys.readouterr().out)
    assert measured["failed"] == 2 and measured["figures"]["requestSeconds"]["samples"] == 4
    assert "503" in measured["errors"][0] and measured["model"] == "tiny"


def test_an_endpoint_that_is_not_there() -> None:
    with pytest.raises(EndpointError, match="not reached"):
        run_load("http://127.0.0.1:9/v1", "tiny", RequestMix())


@pytest.mark.parametrize(
    "wrong",
    [{"requests": 0}, {"concurrency": 0}, {"rate": 0}, {"rate": float("nan")}, {"warmup": -1}],
)
def test_a_mix_that_measures_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        RequestMix(**wrong).check()


def _draw(mean: float, spread: float, chance: np.random.Generator, count: int = 64) -> dict[str, Any]:
    values = mean * chance.lognormal(0, spread, count)
    names = ("firstTokenSeconds", "betweenTokensSeconds", "requestSeconds")
    return {"mix": {"requests": count}, "samples": {name: list(values) for name in names}}


def test_the_same_engine_twice_and_one_that_is_slower() -> None:
    """Twenty pairs of runs whose requests scatter by 8 %: no false alarm, and 10 % is noticed."""
    chance = np.random.default_rng(7)
    same = [(_draw(0.1, 0.08, chance), _draw(0.1, 0.08, chance)) for _ in range(20)]
    slower = [(_draw(0.1, 0.08, chance), _draw(0.11, 0.08, chance)) for _ in range(20)]

    def alarms(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> int:
        return sum(any(c.is_slower for c in compare_measurements(a, b)) for a, b in pairs)

    assert alarms(same) == 0
    assert alarms(slower) >= 19
    assert alarms([(b, a) for a, b in slower]) == 0


def test_another_mix_is_not_compared() -> None:
    a, b = (_draw(0.1, 0.01, np.random.default_rng(0), count) for count in (8, 9))
    with pytest.raises(UsageError, match="differ in requests"):
        compare_measurements(a, b)


def test_the_interval_holds_the_mean() -> None:
    """Of 200 draws of a known mean about 95 % of the intervals hold it."""
    chance = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        figure = summarize(list(chance.normal(5, 1, 40)))
        assert figure is not None and figure.low <= figure.mean <= figure.high
        held += figure.low <= 5 <= figure.high
    assert 180 <= held <= 199
    assert summarize([]) is None


def test_kept_measurements_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--requests", "12", "--warmup", "1", "--output-tokens", "4", "--input-words", "4"]
    for name, step in (("before", 0.002), ("after", 0.01)):
        with serve_recorded(step=step) as server:
            assert main(["bench", server.url, *words, "-o", str(tmp_path / name)]) == 0
    assert main(["bench", "--compare", str(tmp_path / "before"), str(tmp_path / "after")]) == 1
    told = capsys.readouterr()
    assert "slower" in told.out and "gate speed" in told.err
    # The names that the measurement was printed with.
    assert "to the first token" in told.out.splitlines()[-3] and "Seconds" not in told.out + told.err
    assert main(["bench", "--compare", str(tmp_path / "after"), str(tmp_path / "before"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    (tmp_path / "broken").write_text('{"version": 1, "mix": {}, "samples": []}')
    assert main(["bench", "--compare", str(tmp_path / "broken"), str(tmp_path / "before")]) == 3
    (tmp_path / "broken").write_text('{"version": 1}')
    assert main(["bench", "--compare", str(tmp_path / "broken"), str(tmp_path / "missing")]) == 3
    assert "no 'mix' and no 'samples'" in capsys.readouterr().err


def test_nothing_of_the_key_is_kept(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-secret-" + "1" * 20)
    key.chmod(0o600)
    with serve_recorded(step=0.001) as server:
        words = ["bench", server.url, "--requests", "2", "--output-tokens", "2", "--key-file", str(key)]
        assert main([*words, "-o", str(tmp_path / "measured")]) == 0
    assert "secret" not in (tmp_path / "measured").read_text()


def test_a_measurement_of_failures_alone() -> None:
    failed = RequestRecord(0.0, (), 1.0, None, 0, "status 503")
    measured = describe_measurement([failed], RequestMix(requests=1), {})
    assert measured["failed"] == 1 and measured["figures"]["requestSeconds"] is None
    with pytest.raises(UsageError, match="no answered request"):
        compare_measurements(measured, measured)


@pytest.mark.parametrize("step", [0.0, 0.01])
def test_answers_that_come_at_once_are_told(
    step: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_recorded(step=step) as server:
        words = ["bench", server.url, "--requests", "2", "--output-tokens", "4"]
        assert main([*words, "-o", str(tmp_path / "measured")]) == 0
    assert ("answers came at once" in capsys.readouterr().err) == (step == 0)


@pytest.mark.parametrize(
    ("status", "model", "fix"),
    [
        (404, "other", "--model tiny"),
        (400, "other", "--model tiny"),
        (404, "tiny", "completions, up to its /v1"),
        (400, "tiny", "--input-words (now 128), --output-tokens (now 64)"),
        (413, "tiny", "--input-words"),
        (401, "tiny", "--key-file FILE"),
        (429, "tiny", "--concurrency (now 1), --rate"),
        (500, "tiny", "enginix chat http://"),
    ],
)
@pytest.mark.parametrize("warmup", ["0", "1"])
def test_a_refused_load_names_what_mends_it(
    status: int, model: str, fix: str, warmup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_recorded(refuse=(status, "no such thing")) as server:
        words = ["bench", server.url, "--model", model, "--requests", "2", "--warmup", warmup]
        assert main(words) == (1 if warmup == "0" else 4)
    told = capsys.readouterr()
    assert f"status {status}: no such thing" in told.out + told.err
    assert fix in (told.out + told.err).split("fix: ")[1]


def test_a_measurement_beside_its_engine_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from enginix.manifest import Manifest

    for name in ("fast", "slow", "unmeasured", "rebuilt"):
        (tmp_path / name).mkdir()
        Manifest("engine", name, kind="tensorrt").write(tmp_path / name)
    words = ["--requests", "4", "--warmup", "0", "--output-tokens", "4", "--input-words", "3"]
    for name, step in (("fast", 0.005), ("slow", 0.02), ("rebuilt", 0.001)):
        with serve_recorded(step=step) as server:
            more = ["--engine", str(tmp_path / name)]
            # The model there is called tiny.
            assert main(["bench", server.url, *words, *more]) == 2
            assert not server.prompts
            assert main(["bench", server.url, *words, *more, "--model", "tiny"]) == 0
    stored = json.loads((tmp_path / "fast.bench.json").read_text())
    assert stored["engine"]["name"] == "fast" and stored["mix"]["requests"] == 4 and stored["enginix"]
    Manifest("engine", "rebuilt", kind="tensorrt", options={"other": 1}).write(tmp_path / "rebuilt")
    capsys.readouterr()
    engines = [str(tmp_path / name) for name in ("fast", "slow", "unmeasured", "rebuilt")]
    page = tmp_path / "page.html"
    assert main(["compare", *engines, "-o", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in told["artefacts"]}
    assert rows["fast"]["speed"] == stored["outputTokensPerSecond"] > rows["slow"]["speed"] > 0
    assert rows["fast"]["bench"]["firstToken"] == stored["figures"]["firstTokenSeconds"]["mean"]
    assert rows["unmeasured"]["speed"] is None and rows["rebuilt"]["speed"] is None
    assert "4 requests, 1 at the same time, 3 words in, 4 tokens out" in told["speedOn"]
    assert any("rebuilt is not shown: rebuilt.bench.json measured another build" in n for n in told["notes"])
    assert any("No speed was measured of unmeasured" in note for note in told["notes"])
    first = 1000 * stored["figures"]["firstTokenSeconds"]["mean"]
    assert f"first {first:,.3g} ms" in page.read_text() and "4 requests" in page.read_text()
    # Another load is another question.
    with serve_recorded(step=0.001) as server:
        more = [*words, "--concurrency", "2", "--model", "tiny", "--engine", str(tmp_path / "unmeasured")]
        assert main(["bench", server.url, *more]) == 0
    assert main(["compare", *engines, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["speedOn"] is None and any("with different loads" in note for note in told["notes"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "engine": {}}'])
def test_a_damaged_measurement_is_named(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from enginix.manifest import Manifest

    (tmp_path / "engine").mkdir()
    Manifest("engine", "engine", kind="tensorrt").write(tmp_path / "engine")
    (tmp_path / "engine.bench.json").write_text(text)
    assert main(["compare", str(tmp_path / "engine"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "The speed of engine is not shown: engine.bench.json" in told["notes"][0]


def test_a_measurement_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before a load is run: nothing listens there."""
    kept = tmp_path / "kept.json"
    kept.write_text("kept")
    words = ["bench", "http://127.0.0.1:9/v1", "--model", "tiny", "-o"]
    assert main([*words, str(kept)]) == 2 and kept.read_text() == "kept"
    assert "exists already" in capsys.readouterr().err
    assert main([*words, str(tmp_path)]) == 2 and main([*words, str(tmp_path / "none/file")]) == 2


def test_two_measurements_at_once_are_both_kept(tmp_path: Path) -> None:
    """Both begin before either is kept; the later one takes a name of its own, and the engine's is named."""
    from concurrent.futures import ThreadPoolExecutor

    from enginix.manifest import Manifest

    engine = tmp_path / "tiny"
    engine.mkdir()
    Manifest("engine", "tiny", kind="tensorrt").write(engine)
    with serve_recorded(step=0.05) as server, ThreadPoolExecutor() as pool:
        words = ["bench", server.url, "--requests", "2", "--output-tokens", "4", "--engine", str(engine)]
        seeds = ("1", "2")
        assert list(pool.map(lambda seed: main([*words, "--seed", seed]), seeds)) == [0, 0]
    kept = [tmp_path / "tiny.bench.json", tmp_path / "tiny.bench-2.json"]
    assert {json.loads(path.read_text())["mix"]["seed"] for path in kept} == {1, 2}


def test_answers_longer_than_the_engine_are_refused_before_a_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from enginix.manifest import Manifest

    for kind, limit in (("reference", "max_seq_len"), ("tensorrt", "maxSeqLen")):
        engine = tmp_path / kind
        engine.mkdir()
        Manifest("engine", kind, kind=kind, options={"limits": {limit: 64}}).write(engine)
        assert main(["bench", str(engine), "--output-tokens", "64"]) == 2
        assert "at most 64 tokens" in capsys.readouterr().err


def test_a_measurement_does_not_lie_in_an_artefact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "engine"
    (engine / "deep").mkdir(parents=True)
    (engine / "enginix.json").write_text("{}")
    words = ["bench", "http://127.0.0.1:9/v1", "--model", "tiny", "-o", str(engine / "deep/kept.json")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"lies in {engine}" in error and f"fix: -o {tmp_path}/engine.bench.json" in error


def test_a_dataset_is_what_trtllm_bench_reads(tmp_path: Path) -> None:
    """The keys that NVIDIA's create_dataset_from_stream takes: task_id, output_tokens, prompt."""
    path = tmp_path / "dataset.jsonl"
    words = ["bench", "--dataset", str(path), "--requests", "3", "--output-tokens", "9", "--input-words", "4"]
    assert main(words) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["task_id"] for row in rows] == [0, 1, 2]
    assert all(
        set(row) == {"task_id", "prompt", "output_tokens"} and row["output_tokens"] == 9 for row in rows
    )
    mix = RequestMix(input_words=4, output_tokens=9, requests=3)
    assert [row["prompt"] for row in rows] == [make_prompt(mix, number) for number in range(3)]
    assert main(words) == 2 and main(["bench", "http://127.0.0.1:9/v1", *words[1:]]) == 2
