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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
    """Return the bytes of the files below ``path``, links to files and directories followed."""
    if path.is_file():
        return path.stat().st_size
    # Each directory once: a link to one of its own parents would have no end.
    total, walked = 0, set[str]()
    for directory, _, names in os.walk(path, followlinks=True):
        real = os.path.realpath(directory)
        if real in walked:
            continue
        walked.add(real)
        total += sum(os.stat(os.path.join(directory, n)).st_size for n in names)
    return total


def human(n: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"


@dataclass(frozen=True)
class DemoHub:
    """A hub on loopback.

    Args:
        address: its endpoint, as HF_ENDPOINT has it.
        log: JSON lines, one a request.
    """

    address: str
    log: Path

    def request_count(self) -> int:
        """Return how many requests it has answered so far."""
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@contextmanager
def run_hub(script: Path, files: Path) -> Iterator[DemoHub]:
    """Serve ``files`` as a Hub repository on loopback."""
    with tempfile.TemporaryDirectory(prefix="enginix-demo-") as tmp:
        port_file = Path(tmp) / "port"
        log = Path(tmp) / "log"
        requests = Path(tmp) / "requests"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    *(sys.executable, str(script), "--repo", f"{REPO}={files}"),
                    *("--port-file", str(port_file), "--log", str(requests)),
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + 20
            while not (port_file.exists() and port_file.read_text().strip()):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise DemoError(f"the hub did not start: {log.read_text(errors='replace').strip()}")
                time.sleep(0.02)
            yield DemoHub(f"http://127.0.0.1:{port_file.read_text().strip()}", requests)
        finally:
            process.terminate()
            process.wait(10)


@dataclass(frozen=True)
class FlakeStages:
    """The stages as packages of a flake, which `nix` evaluates."""

    flake: str
    nix: tuple[str, ...]

    def build_command(self, stage: str) -> list[str]:
        """Return the command that builds a stage; ``read_path`` reads what it prints."""
        return [*self.nix, "build", f"{self.flake}#{MODEL}-{stage}", "--no-link", "--json"]

    def read_path(self, output: str) -> Path:
        """Return the store path of a stage that was built."""
        return Path(json.loads(output)[0]["outputs"]["out"])


@dataclass(frozen=True)
class DerivationStages:
    """The stages as derivations that exist already: `nix run .#demo` has evaluated them."""

    derivations: Mapping[str, str]

    def build_command(self, stage: str) -> list[str]:
        """Return the command that builds a stage; ``read_path`` reads what it prints."""
        return ["nix-store", "--realise", self.derivations[stage]]

    def read_path(self, output: str) -> Path:
        """Return the store path of a stage that was built."""
        return Path(output.split()[-1])


def read_derivations(path: Path) -> DerivationStages:
    """Read lines of the form stage=derivation."""
    rows = (line.partition("=") for line in path.read_text().splitlines() if line)
    derivations = {stage: derivation for stage, _, derivation in rows}
    missing = [stage for stage, _, _ in STAGES if stage not in derivations]
    if missing:
        raise DemoError(f"{path} lacks the stage {missing[0]}")
    return DerivationStages(derivations)


def build(stages: FlakeStages | DerivationStages, stage: str, env: Mapping[str, str]) -> tuple[Path, int]:
    """Build one stage; return its store path and how many derivations Nix had to build."""
    command = stages.build_command(stage)
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DemoError(
            f"there is no {command[0]} on PATH; install Nix (https://nixos.org/download)"
        ) from None
    if done.returncode != 0:
        raise DemoError(f"{MODEL}-{stage} did not build:\n{done.stderr.strip()}")
    built = len(re.findall(r"^building '", done.stderr, re.M))
    return stages.read_path(done.stdout), built


def describe_hub(hub: DemoHub, built: int) -> str:
    """Say where the model's files came from.

    A multi-user Nix builds in its daemon, which does not have the caller's HF_ENDPOINT: there the
    model's own hub serves, which is part of its derivation.
    """
    if hub.request_count():
        return f"{hub.address} served {REPO} (a small hub on loopback, in the real one's place)"
    if built:
        return f"the model's own, inside the build, served {REPO}: this Nix hands HF_ENDPOINT to no build"
    return "not asked: the model's files are in the store"


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
    parser.add_argument(
        "--derivations",
        type=Path,
        metavar="FILE",
        help="stage=derivation a line, in place of --flake and --nix: nothing is evaluated",
    )
    parser.add_argument("--prompt", default="The license grants you the right to")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--serve", action="store_true", help="leave the server running on its default ports")
    args = parser.parse_args()
    stages: FlakeStages | DerivationStages = FlakeStages(args.flake, tuple(shlex.split(args.nix)))
    if args.derivations is not None:
        stages = read_derivations(args.derivations)

    start = time.monotonic()
    built_in_all = 0
    print(f"enginix demo: {REPO}, from a hub to an answer; every stage a Nix derivation", flush=True)
    path = Path()
    with run_hub(HERE.parent / "tests/hub/serve.py", HERE.parent / "tests/models" / MODEL) as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.address}
        for stage, function, source in STAGES:
            begun = time.monotonic()
            path, built = build(stages, stage, env)
            built_in_all += built
            seconds = time.monotonic() - begun
            if stage == "model":
                print(f"  {'hub':<15} {describe_hub(hub, built)}", flush=True)
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
