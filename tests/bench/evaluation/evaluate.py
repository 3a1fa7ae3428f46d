#!/usr/bin/env python3
"""How evaluation grows: with the model asked for, not with the catalogue.

Generates catalogues of 1 to 1,000 locks of 200 files each, in the project's own functions over the stand-in
package set, and evaluates one package of each: the derivation path of its model and of its engine. Beside it
a model of 1, 50 and 200 files, and one of the project's own catalogue. Reported are ratios within one run.

  tests/bench/evaluation/evaluate.py [--locks 1000] [--files 200] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
FACTS = {
    "architecture": "Qwen3ForCausalLM", "context": 40960, "dtype": "bfloat16", "headSize": 128, "heads": 16,
    "hiddenSize": 1024, "intermediateSize": 3072, "kvCacheQuantization": None, "kvHeads": 8, "layers": 28,
    "modelType": "qwen3", "quantization": None, "tiedEmbeddings": True, "vocabulary": 151936,
}  # fmt: skip
EXPRESSION = """
{ dir, name, stage }:
let
  e = import %(root)s/nix { pkgs = import %(root)s/tests/hostpkgs { system = "x86_64-linux"; }; };
  # A catalogue as the project's: listed, lazy, one lock a model.
  models = builtins.mapAttrs (_: file: e.mkHfModel { lock = dir + "/${file}"; }) (
    builtins.fromJSON (builtins.readFile (dir + "/index.json"))
  );
  model = if dir == null then e.catalogue.${name}.model else models.${name};
  engine = e.mkEngine { kind = "reference"; inherit model; };
in
{ inherit model engine; }.${stage}.drvPath
"""


def lock(n: int, files: int) -> dict[str, Any]:
    def sha(what: str) -> str:
        return hashlib.sha256(f"{n} {what}".encode()).hexdigest()

    names = ["config.json", "tokenizer.json"]
    names += [f"model-{i:05}-of-{files:05}.safetensors" for i in range(1, files - 1)]
    return {
        "version": 1,
        "repo": f"owner/model-{n}",
        "revision": sha("commit")[:40],
        "license": "apache-2.0",
        "gated": False,
        "model": FACTS,
        "files": {name: {"sha256": sha(name), "size": 4_000_000_000} for name in sorted(names[:files])},
    }


def write_catalogue(directory: Path, locks: int, files: int) -> Path:
    directory.mkdir()
    index = {}
    for n in range(locks):
        name = f"model-{n:04}"
        (directory / f"{name}.lock.json").write_text(json.dumps(lock(n, files)))
        index[name] = f"{name}.lock.json"
    (directory / "index.json").write_text(json.dumps(index))
    return directory


def measured(words: list[str], environment: dict[str, str], rounds: int) -> dict[str, float]:
    """Least of ``rounds``: processor seconds, thunks, bytes allocated, peak memory of the evaluator."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as room:
            stats, errors = Path(room) / "stats.json", Path(room) / "stderr"
            env = {**environment, "NIX_SHOW_STATS": "1", "NIX_SHOW_STATS_PATH": str(stats)}
            with errors.open("wb") as sink:
                process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=sink)
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                raise SystemExit(f"{' '.join(words[:4])} …: {errors.read_text()[-2000:]}")
            told = json.loads(stats.read_text())
        found = {
            "seconds": usage.ru_utime + usage.ru_stime,
            "thunks": told["nrThunks"],
            "calls": told["nrFunctionCalls"],
            "allocated": told["gc"]["totalBytes"],
            "peak": usage.ru_maxrss * 1024,
        }
        best = {k: min(v, best.get(k, v)) for k, v in found.items()}
    return best


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--locks", type=int, default=1000)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="enginix-bench-") as room:
        store = Path(room) / "store"
        environment = {**os.environ, "NIX_REMOTE": f"local?root={store}", "NIX_PATH": ""}
        shape = Path(room) / "shape.nix"
        shape.write_text(EXPRESSION % {"root": ROOT})
        sizes = [(n, args.files) for n in (1, 10, 100, 1000) if n < args.locks] + [(args.locks, args.files)]
        sizes += [(args.locks, n) for n in (1, 50) if n < args.files]
        for locks, files in sizes:
            where = write_catalogue(Path(room) / f"{locks}x{files}", locks, files)
            for stage in ("model", "engine"):
                words = [
                    "nix-instantiate", "--eval", "--strict", "--readonly-mode", str(shape),
                    "--arg", "dir", str(where), "--argstr", "name", f"model-{locks // 2:04}",
                    "--argstr", "stage", stage,
                ]  # fmt: skip
                rows.append(
                    {
                        "locks": locks,
                        "files": files,
                        "stage": stage,
                        **measured(words, environment, args.rounds),
                    }
                )
        for stage in ("model", "engine"):
            words = ["nix-instantiate", "--eval", "--strict", "--readonly-mode", str(shape)]
            words += ["--arg", "dir", "null", "--argstr", "name", "tiny-qwen3", "--argstr", "stage", stage]
            rows.append(
                {"locks": "own", "files": 8, "stage": stage, **measured(words, environment, args.rounds)}
            )
        base = {(r["files"], r["stage"]): r for r in rows if r["locks"] == 1}
        for row in rows:
            one = base.get((row["files"], row["stage"]))
            row["ratio"] = {k: row[k] / one[k] for k in ("seconds", "allocated", "peak")} if one else None
    if args.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    sys.stdout.write(
        "locks  files  stage    thunks  allocated      peak  × one lock: time  allocated  peak\n"
    )
    for r in rows:
        ratio = r["ratio"]
        times = f"{ratio['seconds']:16.2f} {ratio['allocated']:10.2f} {ratio['peak']:5.2f}" if ratio else ""
        sys.stdout.write(
            f"{r['locks']!s:>5}  {r['files']:5}  {r['stage']:<7} {r['thunks']:7.0f}  "
            f"{r['allocated'] / 2**20:6.1f} MiB {r['peak'] / 2**20:5.0f} MiB  {times}\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
