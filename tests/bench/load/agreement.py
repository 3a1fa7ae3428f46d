"""Measures one endpoint by `enginix bench` and NVIDIA's AIPerf, in turns, and prints both beside the truth.

    D=$(tests/hostpkgs/environments.sh dev)/bin
    python3 -m venv VENV && VENV/bin/pip install aiperf
    $D/python tests/bench/load/agreement.py VENV/bin/aiperf

The endpoint is exact_server.py, a process of its own, which knows when it wrote each token. Both tools put
the same load on it, by completions that are streamed, and take the server's count of tokens. A tool adds to
each figure what lies between the server's write and its own reading, and its processes may make the server
late: so each is shown beside what the server did in the same requests. Rounds are repeated for at most
--seconds; the whole takes less than five minutes.

Figures are medians of requests, which single stalls of the machine do not move. The ratio is of enginix'
figure to AIPerf's, each divided by the server's own. "Agree" says that its interval (95 %, bootstrap over
requests) reaches 1 ± 3 %, the tolerance of the gate speed. Ends with status 1 where one does not agree.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).resolve().parents[2]
ROOT = TESTS.parent
REQUESTS, TOKENS, WORDS, WARMUP = 24, 32, 32, 2
TOLERANCE = 0.03
# Seconds of one tool's run: AIPerf starts for about 10 on an idle machine.
LONGEST_RUN = 120
# (requests at the same time, whether the server closes the connection after each answer).
SETTINGS = ((1, False), (4, False), (1, True))
# Figure → its name in AIPerf's records. AIPerf's request ends with the last token, as the truth's does here.
FIGURES = {
    "first token": "time_to_first_token",
    "between tokens": "inter_token_latency",
    "request": "request_latency",
}
# What AIPerf's own trace says of a request before the server has it.
CONNECTING = "http_req_connecting"
Samples = dict[str, list[float]]


@dataclass
class Measured:
    """Milliseconds of requests by figure, of all rounds of one tool, and what the server did meanwhile."""

    tool: Samples = field(default_factory=dict)
    truth: Samples = field(default_factory=dict)

    def add(self, tool: Samples, truth: Samples) -> None:
        for store, samples in ((self.tool, tool), (self.truth, truth)):
            for name, values in samples.items():
                store.setdefault(name, []).extend(values)


@contextlib.contextmanager
def run_exact_server(truth: Path, *, closes: bool) -> Iterator[str]:
    """Run the server until the block ends; gives its address."""
    words = [sys.executable, str(Path(__file__).with_name("exact_server.py")), str(truth)]
    with subprocess.Popen(
        [*words, *(["--close"] if closes else [])], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


def read_truth(file: Path) -> Samples:
    """Return what the server did in the measured requests, which are its last ones."""
    rows = [json.loads(line) for line in file.read_text().splitlines()][-REQUESTS:]
    return {
        "first token": [1000 * (row["written"][0] - row["arrived"]) for row in rows],
        "between tokens": [1000 * (row["written"][-1] - row["written"][0]) / (TOKENS - 1) for row in rows],
        "request": [1000 * (row["written"][-1] - row["arrived"]) for row in rows],
    }


def measure_with_enginix(url: str, concurrency: int, out: Path) -> Samples:
    """Return the samples of `enginix bench`; a request counts to its last token, as in AIPerf."""
    file = out / "enginix.json"
    words = ["bench", f"{url}/v1", "--quiet", "--requests", str(REQUESTS), "--output-tokens", str(TOKENS)]
    words += ["--input-words", str(WORDS), "--warmup", str(WARMUP), "--concurrency", str(concurrency)]
    subprocess.run(
        [sys.executable, "-m", "enginix", *words, "-o", str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=LONGEST_RUN,
    )
    samples = json.loads(file.read_text())["samples"]
    first, between = (
        [1000 * v for v in samples[f"{name}Seconds"]] for name in ("firstToken", "betweenTokens")
    )
    last = [f + (TOKENS - 1) * b for f, b in zip(first, between, strict=True)]
    return {"first token": first, "between tokens": between, "request": last}


def measure_with_aiperf(program: Path, url: str, concurrency: int, out: Path) -> Samples:
    """Return the samples of AIPerf, and the time that its connections took."""
    words = ["profile", "-m", "tiny", "-u", url, "--endpoint-type", "completions", "--streaming"]
    words += ["--tokenizer", str(TESTS / "models/tiny-qwen3"), "--use-server-token-count"]
    words += ["--isl", str(WORDS), "--osl", str(TOKENS), "--request-count", str(REQUESTS), "--ui", "none"]
    words += ["--warmup-request-count", str(WARMUP), "--concurrency", str(concurrency)]
    # As few processes as it has, beside a server on the same processors.
    words += ["--workers-max", "1", "--record-processors", "1"]
    subprocess.run(
        [program, *words, "--artifact-dir", str(out)],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=LONGEST_RUN,
    )
    records = [json.loads(line) for line in (out / "profile_export.jsonl").read_text().splitlines()]
    measured = [r["metrics"] for r in records if r["metadata"]["benchmark_phase"] == "profiling"]
    names = {**FIGURES, CONNECTING: CONNECTING}
    return {figure: [float(m[name]["value"]) for m in measured] for figure, name in names.items()}


def measure_setting(program: Path, concurrency: int, closes: bool, seconds: float) -> tuple[Measured, ...]:
    """Repeat rounds of both tools until the seconds are over; at least one."""
    own, other = Measured(), Measured()
    begun = time.monotonic()
    longest = 0.0
    while True:
        round_begun = time.monotonic()
        for store, tool in ((own, "enginix"), (other, "aiperf")):
            with tempfile.TemporaryDirectory() as folder:
                out, truth = Path(folder), Path(folder, "truth.jsonl")
                with run_exact_server(truth, closes=closes) as url:
                    samples = (
                        measure_with_enginix(url, concurrency, out)
                        if tool == "enginix"
                        else measure_with_aiperf(program, url, concurrency, out)
                    )
                store.add(samples, read_truth(truth))
        longest = max(longest, time.monotonic() - round_begun)
        if time.monotonic() - begun + longest > seconds:
            return own, other


def resample_medians(values: Sequence[float], chance: np.random.Generator) -> Any:
    """Return medians of samples that are drawn from the values."""
    return np.median(np.asarray(values)[chance.integers(0, len(values), (4000, len(values)))], axis=1)


def estimate_ratio(figure: str, own: Measured, other: Measured) -> tuple[float, float, float]:
    """Return how the tools' figures relate, each by the server's own, and the 95 % interval of that."""
    chance = np.random.default_rng(0)
    ratio, drawn = 1.0, 1.0
    for measured, power in ((own, 1), (other, -1)):
        for samples, sign in ((measured.tool[figure], power), (measured.truth[figure], -power)):
            ratio *= statistics.median(samples) ** sign
            drawn = drawn * resample_medians(samples, chance) ** sign
    low, high = np.quantile(drawn, [0.025, 0.975])
    return ratio, float(low), float(high)


def format_rows(setting: tuple[int, bool], own: Measured, other: Measured) -> list[tuple[str, bool]]:
    """Return a row of the table for each figure, and whether the tools agree in it."""
    rows = []
    for figure in FIGURES:
        ratio, low, high = estimate_ratio(figure, own, other)
        agrees = low <= 1 + TOLERANCE and high >= 1 - TOLERANCE
        cells: list[Any] = [setting[0], "closed" if setting[1] else "kept", figure]
        for measured in (own, other):
            value, truth = (statistics.median(m[figure]) for m in (measured.tool, measured.truth))
            cells += [f"{truth:.2f}", f"{value:.2f} ({value - truth:+.2f})"]
        cells += [f"{ratio:.3f} ({low:.3f} to {high:.3f})", "yes" if agrees else "no"]
        rows.append(("| " + " | ".join(map(str, cells)) + " |", agrees))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("aiperf", type=Path)
    parser.add_argument("--seconds", type=float, default=240, help="of all rounds (240)")
    args = parser.parse_args()
    print("| at once | connections | figure, ms | server | enginix bench | server | AIPerf | ratio | agree |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    begun, verdicts, notes = time.monotonic(), [], []
    for number, setting in enumerate(SETTINGS):
        left = args.seconds - (time.monotonic() - begun)
        own, other = measure_setting(args.aiperf, *setting, left / (len(SETTINGS) - number))
        for row, agrees in format_rows(setting, own, other):
            print(row, flush=True)
            verdicts.append(agrees)
        connecting = other.tool[CONNECTING]
        notes.append(
            f"{setting[0]} at once, {'closed' if setting[1] else 'kept'}: "
            f"{len(own.tool['request'])} requests each; AIPerf's connections took "
            f"{statistics.median(connecting):.2f} ms, {statistics.mean(connecting):.2f} in the mean"
        )
    print("\n" + "\n".join(notes))
    print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
