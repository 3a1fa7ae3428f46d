"""Measures one endpoint by `enginix bench` and by NVIDIA's AIPerf, in turns, and prints ratios.

    D=$(tests/hostpkgs/environments.sh dev)/bin
    python3 -m venv VENV && VENV/bin/pip install aiperf
    $D/python tests/bench/load/agreement.py VENV/bin/aiperf

The endpoint is the stand-in of tests/python/speed, which writes a token every 10 ms: both tools put the same
load on it, by completions that are streamed, and take the server's count of tokens.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[2]
ROOT = TESTS.parent
sys.path[:0] = [str(TESTS), str(ROOT / "python")]
REQUESTS, TOKENS, WORDS, ROUNDS = 32, 32, 32, 2
# Figure → its name in AIPerf's export and what its unit is in enginix' own.
FIGURES = {
    "first token": ("time_to_first_token", 1e-3),
    "between tokens": ("inter_token_latency", 1e-3),
    "request": ("request_latency", 1e-3),
    "tokens a second": ("output_token_throughput", 1.0),
}


def load_standin() -> Any:
    """Return the module of the test with the stand-in."""
    spec = importlib.util.spec_from_file_location("standin", TESTS / "python/speed/test_bench.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["standin"] = module
    spec.loader.exec_module(module)
    return module


def measure_with_enginix(url: str, concurrency: int) -> dict[str, float]:
    words = ["bench", url, "--json", "--quiet", "--requests", str(REQUESTS), "--output-tokens", str(TOKENS)]
    words += ["--input-words", str(WORDS), "--concurrency", str(concurrency)]
    done = subprocess.run(
        [sys.executable, "-m", "enginix", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    names = ("firstTokenSeconds", "betweenTokensSeconds", "requestSeconds")
    means = [told["figures"][name]["mean"] for name in names]
    return dict(zip(FIGURES, [*means, told["outputTokensPerSecond"]], strict=True))


def measure_with_aiperf(program: Path, url: str, concurrency: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as out:
        words = ["profile", "-m", "tiny", "-u", url.removesuffix("/v1"), "--endpoint-type", "completions"]
        words += ["--streaming", "--tokenizer", str(TESTS / "models/tiny-qwen3"), "--use-server-token-count"]
        words += ["--isl", str(WORDS), "--osl", str(TOKENS), "--request-count", str(REQUESTS)]
        words += ["--warmup-request-count", "2", "--concurrency", str(concurrency), "--ui", "none"]
        subprocess.run(
            [program, *words, "--artifact-dir", out],
            env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        told = json.loads(Path(out, "profile_export_aiperf.json").read_text())
    return {figure: told[name]["avg"] * scale for figure, (name, scale) in FIGURES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("aiperf", type=Path)
    args = parser.parse_args()
    standin = load_standin()
    print("| requests at the same time | figure | enginix bench | AIPerf | ratio (lowest to highest) |")
    print("|---|---|---|---|---|")
    for concurrency in (1, 4):
        rounds = []
        for _ in range(ROUNDS):
            with standin.serve_recorded(step=0.01) as server:
                rounds.append(
                    (
                        measure_with_enginix(server.url, concurrency),
                        measure_with_aiperf(args.aiperf, server.url, concurrency),
                    )
                )
        for figure in FIGURES:
            own, other = (statistics.mean(pair[side][figure] for pair in rounds) for side in (0, 1))
            ratios = [a[figure] / b[figure] for a, b in rounds]
            unit, scale = ("", 1.0) if figure == "tokens a second" else (" ms", 1e3)
            print(
                f"| {concurrency} | {figure} | {own * scale:.2f}{unit} | {other * scale:.2f}{unit} | "
                f"{statistics.mean(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
