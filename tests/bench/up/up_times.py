"""Times `enginix up` from a name to an answer, beside huggingface_hub's download and transformers.

    D=$(tests/hostpkgs/environments.sh dev)/bin
    $D/python tests/bench/up/up_times.py WORK [--without-gates] acme/tiny=tests/models/tiny-qwen3 …

The Hub is tests/hub's server on loopback: no network. Each figure is one run in a fresh process, to the end
of an answer of at most 64 tokens to the same prompt: cold with empty caches, warm with those of the run
before. A directory WORK/NAME is made for each; the file cache of the system is as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
ROOT = TESTS.parent
sys.path[:0] = [str(TESTS), str(ROOT / "python")]

from environments import environment  # noqa: E402
from hub import Hub  # noqa: E402

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


def time_command(words: list[str], variables: dict[str, str], directory: Path) -> float:
    """Return the seconds of a command; its output is in ``directory``/log."""
    begun = time.monotonic()
    with (directory / "log").open("ab") as log:
        subprocess.run(
            words, env={**os.environ, **variables}, cwd=directory, stdout=log, stderr=log, check=True
        )
    return time.monotonic() - begun


def measure_model(name: str, endpoint: str, work: Path, *, gates: bool) -> dict[str, object]:
    """Return seconds of both ways, cold and warm, and those of each stage."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
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
    row: dict[str, object] = {"model": name, "gates": gates}
    for state in ("cold", "warm"):
        row[f"up {state}"] = round(time_command(up, variables, work), 1)
        row[f"transformers {state}"] = round(time_command(other, variables, work), 1)
    stages = (work / "cache/enginix/up/stages.jsonl").read_text().splitlines()
    row["stages"] = {s["stage"]: s["seconds"] for s in map(json.loads, stages)}
    row["load average"] = round(os.getloadavg()[0], 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("models", nargs="+", metavar="OWNER/NAME=DIR")
    parser.add_argument("--without-gates", action="store_true")
    args = parser.parse_args()
    served = {name: Path(folder) for name, _, folder in (word.partition("=") for word in args.models)}
    with Hub(dict(served)) as hub:
        for name in served:
            work = (args.work / name.replace("/", "-")).absolute()
            row = measure_model(name, hub.endpoint, work, gates=not args.without_gates)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
