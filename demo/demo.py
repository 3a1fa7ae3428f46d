"""A small model from a hub to an answer, through every stage, each a Nix derivation.

Standard library only: it runs before anything of enginix is built.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODEL = "tiny-qwen3"
REPO = f"enginix/{MODEL}"
HERE = Path(__file__).resolve().parent

# stage of the package name, function, what goes in
STAGES = (
    ("model", "mkHfModel", "the lock's files, from the hub"),
    ("checkpoint", "mkCheckpoint", "model"),
    ("engine", "mkEngine", "checkpoint, gated against the model"),
    ("triton-repo", "mkTritonRepo", "engine"),
    ("triton-server", "mkTritonServer", "repository, tritonserver"),
)


class DemoError(Exception):
    """Shown to the user as it is."""


def size_of(path: Path) -> int:
    """Bytes of the files below ``path``, links followed."""
    if path.is_file():
        return path.stat().st_size
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def human(n: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"


@contextmanager
def hub(script: Path, files: Path) -> Iterator[str]:
    """Serves ``files`` as a Hub repository on loopback; yields its address."""
    with tempfile.TemporaryDirectory(prefix="enginix-demo-") as tmp:
        port_file = Path(tmp) / "port"
        log = Path(tmp) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, str(script), "--repo", f"{REPO}={files}", "--port-file", str(port_file)],
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + 20
            while not (port_file.exists() and port_file.read_text().strip()):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise DemoError(f"the hub did not start: {log.read_text(errors='replace').strip()}")
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port_file.read_text().strip()}"
        finally:
            process.terminate()
            process.wait(10)


def build(nix: list[str], flake: str, stage: str, env: dict[str, str]) -> tuple[Path, int]:
    """Builds one stage; returns its store path and how many derivations Nix had to build."""
    done = subprocess.run(
        [*nix, "build", f"{flake}#{MODEL}-{stage}", "--no-link", "--json"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise DemoError(f"{MODEL}-{stage} did not build:\n{done.stderr.strip()}")
    built = len(re.findall(r"^building '", done.stderr, re.M))
    return Path(json.loads(done.stdout)[0]["outputs"]["out"]), built


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--flake", default=str(HERE.parent), help="the flake to build from (default: this one)"
    )
    parser.add_argument(
        "--nix", default="nix --extra-experimental-features 'nix-command flakes'", help="the nix command"
    )
    parser.add_argument("--prompt", default="The license grants you the right to")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--serve", action="store_true", help="leave the server running on its default ports")
    args = parser.parse_args()
    nix = shlex.split(args.nix)

    start = time.monotonic()
    built_in_all = 0
    print(f"enginix demo: {REPO}, from a hub to an answer; every stage a Nix derivation", flush=True)
    path = Path()
    with hub(HERE.parent / "tests/hub/serve.py", HERE.parent / "tests/models" / MODEL) as address:
        env = {**os.environ, "HF_ENDPOINT": address}
        print(
            f"  {'hub':<15} {address} serves {REPO} (a small hub on loopback, in the real one's place)",
            flush=True,
        )
        for stage, function, source in STAGES:
            begun = time.monotonic()
            path, built = build(nix, args.flake, stage, env)
            built_in_all += built
            seconds = time.monotonic() - begun
            news = f"{built} built" if built else "unchanged"
            print(
                f"  {function:<15} {source:<36} {human(size_of(path)):>10}"
                f"  {seconds:5.1f} s  {news:<9}  {path}",
                flush=True,
            )
    print(
        f"  {'in all':<15} {built_in_all} derivations built, {time.monotonic() - start:.1f} s\n", flush=True
    )

    command = [str(path / "bin" / f"{MODEL}-triton-server")]
    if not args.serve:
        ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        command += [*ports, "--ask", args.prompt, "--max-tokens", str(args.max_tokens), "--exit-after-ask"]
    server = subprocess.Popen(command)
    # The server gets the terminal's signals itself and stops in order; wait for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    code = server.wait()
    if not args.serve and code == 0:
        print(f"\nserver stopped cleanly; {time.monotonic() - start:.1f} s in all")
    return code


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except DemoError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(5) from None
