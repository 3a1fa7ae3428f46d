"""Times `enginix up` from a name to an answer, beside huggingface_hub's download and transformers.

    D=$(tests/hostpkgs/environments.sh dev)/bin
    $D/python tests/bench/up/up_times.py WORK                  tiny-qwen3, and Qwen3-0.6B's shape (1.2 GB)
    $D/python tests/bench/up/up_times.py WORK --layers 2       a trial: the shape with 2 layers for 28

It prints the table of docs/explanation/measurements.md. The large model has random weights and tiny-qwen3's
tokenizer. The Hub is tests/hub's server on loopback. Each figure is one run in a fresh process, to
the end of an answer of at most 64 tokens to the same prompt: cold with empty caches, warm with those of the
run before; the file cache of the system is as it is. WORK/NAME is made for each model, and removed first.

The whole ends within --minutes (14): a run that would go beyond is ended, and its cell says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
ROOT = TESTS.parent
sys.path[:0] = [str(TESTS), str(ROOT / "python")]

from environments import environment  # noqa: E402
from hub import Hub  # noqa: E402

TINY = TESTS / "models/tiny-qwen3"
PROMPT = "The license grants you"
# The same by the libraries that `enginix up` is compared with.
TRANSFORMERS = f"""
import sys, torch, transformers
from huggingface_hub import snapshot_download
model = snapshot_download(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(model)
network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
ids = tokenizer({PROMPT!r}, return_tensors="pt")
answer = network.generate(**ids, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0]))
"""


@dataclass
class Budget:
    """What is left of the time of the whole."""

    ends: float

    def run(self, words: list[str], variables: dict[str, str], directory: Path) -> float | None:
        """Return the seconds of a command; None where it was ended. Its output is in ``directory``/log."""
        begun = time.monotonic()
        with (directory / "log").open("ab") as log:
            process = subprocess.Popen(
                words, env={**os.environ, **variables}, cwd=directory, stdout=log, stderr=log
            )
            try:
                status = process.wait(max(1.0, self.ends - begun))
            except subprocess.TimeoutExpired:
                # It ends its own servers.
                process.send_signal(signal.SIGTERM)
                process.wait()
                return None
        if status != 0:
            raise SystemExit(f"{' '.join(words[:5])} ended with status {status}; see {directory / 'log'}")
        return time.monotonic() - begun


def write_large_model(out: Path, layers: int) -> None:
    """Write a model of Qwen3-0.6B's shape with random weights, in bfloat16."""
    import torch
    import transformers

    for file in TINY.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and not file.name.endswith("index.json"):
            shutil.copyfile(file, out / file.name)
    small = json.loads((TINY / "config.json").read_text())
    config = transformers.Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        **{name: small[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in small},
    )
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(out)


def measure_model(name: str, endpoint: str, work: Path, gates: bool, budget: Budget) -> dict[str, object]:
    """Return seconds of both ways, cold and warm, and those of each stage."""
    variables = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(work / "hf"),
        "XDG_CACHE_HOME": str(work / "cache"),
        "PYTHONPATH": str(ROOT / "python"),
        "ENGINIX_GATEWAY_PYTHON": str(environment("gateway") / "bin" / "python3"),
        "ENGINIX_TRITONSERVER": str(environment("tritonserver")),
        "TRANSFORMERS_VERBOSITY": "error",
    }
    up = [sys.executable, "-m", "enginix", "up", name, "--port", "0", "--ask", PROMPT, "--exit-after-ask"]
    up += [] if gates else ["--no-gates"]
    other = [sys.executable, "-c", TRANSFORMERS, name]
    row: dict[str, object] = {}
    # The shorter way first: what is left of the time is for the other.
    for way, words in (("transformers", other), ("up", up)):
        for state in ("cold", "warm"):
            row[f"{way} {state}"] = budget.run(words, variables, work)
    log = work / "cache/enginix/up/stages.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    row["stages"] = {stage["stage"]: stage["seconds"] for stage in map(json.loads, lines)}
    return row


def format_seconds(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else "beyond the time"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--layers", type=int, default=28, help="of the large model (28)")
    parser.add_argument("--without-gates", action="store_true", help="for the large model: up --no-gates")
    parser.add_argument("--minutes", type=float, default=14, help="of the whole (14)")
    args = parser.parse_args()
    budget = Budget(time.monotonic() + 60 * args.minutes)
    work = args.work.absolute()
    large = work / "large"
    for folder in ("large", "acme-tiny", "acme-large"):
        shutil.rmtree(work / folder, ignore_errors=True)
        (work / folder).mkdir(parents=True)
    write_large_model(large, args.layers)
    print("| model | | `enginix up` | download and transformers |")
    print("|---|---|---|---|", flush=True)
    notes = []
    with Hub({"acme/tiny": TINY, "acme/large": large}) as hub:
        for name, model in (("acme/tiny", TINY), ("acme/large", large)):
            gates = not (args.without_gates and name == "acme/large")
            row = measure_model(name, hub.endpoint, work / name.replace("/", "-"), gates, budget)
            size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
            text = f"{'tiny-qwen3' if model == TINY else 'random weights'}, {size / 1e6:,.0f} MB"
            text += "" if gates else ", `--no-gates`"
            for state in ("cold", "warm"):
                first = text if state == "cold" else ""
                cells = [format_seconds(row[f"{way} {state}"]) for way in ("up", "transformers")]
                print(f"| {first} | {state} | {' | '.join(cells)} |", flush=True)
            notes.append(f"{text}: stages of the cold run, in seconds: {json.dumps(row['stages'])}")
    print("\n" + "\n".join(notes))
    print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
