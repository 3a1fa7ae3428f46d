#!/usr/bin/env python3
"""Fetching, measured side by side: enginix fetch, hf download and git lfs clone against one hub on loopback.

Every round runs each of them once, in turn, so that what else the machine does falls on all alike. Figures
are ratios of medians; bytes and requests are counted by the hub. Needs about 3 times --size of disk.

  python tests/bench/hub/bench.py                       2 GB in 4 shards, 5 rounds
  python tests/bench/hub/bench.py --write docs/explanation/measurements.md
      puts the table between the page's marks
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
REPO = "bench/model"


@dataclass
class Runs:
    """One contestant's rounds."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    extra_disk: list[int] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=2_000_000_000, help="bytes of the model (%(default)s)")
    parser.add_argument("--shards", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--work", type=Path, help="where it works; a directory of the system's by default")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="enginix-bench-", dir=args.work) as name:
        found = measure(Path(name), args)
    text = table(found)
    sys.stdout.write(text)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    if args.write:
        page = args.write.read_text()
        head, rest = page.split(BEGIN)
        args.write.write_text(f"{head}{BEGIN}\n{text}{END}{rest.split(END)[1]}")
    return 0


def measure(work: Path, args: argparse.Namespace) -> dict[str, object]:
    """Builds the repositories, serves them, and runs everything."""
    model, many = work / "model", work / "many"
    make_model(model, args.size, args.shards)
    make_many(many)
    log, port_file = work / "log", work / "port"
    words = [
        sys.executable,
        ROOT / "tests/hub/serve.py",
        "--repo",
        f"{REPO}={model}",
        "--repo",
        f"bench/many={many}",
    ]
    hub = subprocess.Popen([*words, "--log", log, "--port-file", port_file], stdout=subprocess.DEVNULL)
    try:
        while not port_file.exists():
            time.sleep(0.05)
        endpoint = f"http://127.0.0.1:{port_file.read_text().strip()}"
        return {**contest(work, args, endpoint), **locks(work, endpoint, log)}
    finally:
        hub.terminate()
        hub.wait()


def contest(work: Path, args: argparse.Namespace, endpoint: str) -> dict[str, object]:
    env = environment(work, endpoint)
    lock = work / "model.lock.json"
    subprocess.run([*enginix(), "lock", REPO, "-o", lock], env=env, check=True, stdout=subprocess.DEVNULL)
    out = work / "out"
    hf = Path(sys.executable).parent / "hf"
    contestants: dict[str, list[str | Path]] = {
        "enginix fetch": [*enginix(), "fetch", lock, "-o", out],
        "hf download": [hf, "download", REPO, "--local-dir", out, "--quiet"],
    }
    if shutil.which("git-lfs"):
        subprocess.run(["git", "lfs", "install", "--skip-repo"], env=env, check=True, capture_output=True)
        contestants["git lfs clone"] = ["git", "lfs", "clone", f"{endpoint}/{REPO}", out]
    runs = {name: Runs() for name in contestants}
    for turn in range(args.rounds + 1):
        for name, command in contestants.items():
            os.sync()
            one = timed(command, env, work)
            # The first turn warms the page cache and the hub's hashes, and does not count.
            if turn:
                runs[name].seconds.append(one[0])
                runs[name].processor.append(one[1])
                runs[name].memory.append(one[2])
                runs[name].extra_disk.append(max(one[3] - args.size, 0))
            remove(out)
            sys.stderr.write(f"round {turn} of {args.rounds}: {name} {one[0]:.2f} s\n")
    return {
        "size": args.size,
        "shards": args.shards,
        "rounds": args.rounds,
        "fetch": {name: vars(r) for name, r in runs.items()},
    }


def locks(work: Path, endpoint: str, log: Path) -> dict[str, object]:
    """Requests and bytes of locking a repository with 1,000 files."""
    log.write_text("")
    lock = work / "many.lock.json"
    command = [*enginix(), "lock", "bench/many", "-o", lock]
    begin = time.monotonic()
    subprocess.run(command, env=environment(work, endpoint), check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - begin
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    files = json.loads(lock.read_text())["files"]
    return {
        "lock": {
            "files": len(files),
            "size": sum(f["size"] for f in files.values()),
            "seconds": seconds,
            "requests": len(rows),
            "sent": sum(r["sent"] for r in rows),
            "weight_bytes": sum(r["sent"] for r in rows if "/blobs/" in r["path"]),
        }
    }


def timed(command: Sequence[str | Path], env: dict[str, str], work: Path) -> tuple[float, float, int, int]:
    """Seconds, processor seconds, peak resident bytes and peak bytes on disk of one command."""
    before = on_disk(work)
    over = threading.Event()
    peak = 0

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.1):
            peak = max(peak, on_disk(work) - before)

    watcher = threading.Thread(target=watch)
    begin = time.monotonic()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watcher.start()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begin
    over.set()
    watcher.join()
    if status:
        assert process.stderr is not None
        sys.exit(f"{command[0]} failed: {process.stderr.read().decode()}")
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, max(peak, on_disk(work) - before)


def on_disk(directory: Path) -> int:
    """Bytes of all files below; what vanishes meanwhile counts nothing."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except OSError:
                continue
    return total


def environment(work: Path, endpoint: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(work),
        "HF_HOME": str(work / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "PYTHONPATH": str(ROOT / "python"),
    }


def enginix() -> list[str | Path]:
    return [sys.executable, "-m", "enginix"]


def make_model(directory: Path, size: int, shards: int) -> None:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    for n in range(1, shards + 1):
        with (directory / f"model-{n:05}-of-{shards:05}.safetensors").open("wb") as f:
            left = size // shards
            while left:
                left -= f.write(os.urandom(min(left, 1 << 24)))


def make_many(directory: Path) -> None:
    """1,000 files: 960 shards of 1 MB that nobody reads, 40 small ones."""
    directory.mkdir()
    for n in range(960):
        with (directory / f"model-{n:05}-of-00960.safetensors").open("wb") as f:
            f.write(n.to_bytes(8, "little"))
            f.truncate(1_000_000)
    for n in range(40):
        (directory / f"part-{n}.json").write_text(json.dumps({"n": n}))


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def table(found: dict[str, object]) -> str:
    """The figures as Markdown."""
    fetch: dict[str, dict[str, list[float]]] = found["fetch"]  # type: ignore[assignment]
    size: int = found["size"]  # type: ignore[assignment]
    ours = statistics.median(fetch["enginix fetch"]["seconds"])
    lines = [
        f"{size / 1e9:g} GB in {found['shards']} shards, {found['rounds']} rounds, medians; "
        f"{os.cpu_count()} processors, shared with the hub.",
        "",
        "| | `enginix fetch` is faster by | its processor time / ours | peak extra disk | peak memory |",
        "|---|---|---|---|---|",
    ]
    cpu = statistics.median(fetch["enginix fetch"]["processor"])
    for name, runs in fetch.items():
        speed = statistics.median(runs["seconds"]) / ours
        lines.append(
            f"| `{name}` | {speed:.2f} × | {statistics.median(runs['processor']) / cpu:.2f} × "
            f"| {max(runs['extra_disk']) / size:.1%} of the model | {max(runs['memory']) / 1e6:.0f} MB |"
        )
    lock: dict[str, float] = found["lock"]  # type: ignore[assignment]
    lines += [
        "",
        f"`enginix lock` of {lock['files']} files ({lock['size'] / 1e6:.0f} MB): "
        f"{lock['requests']} requests, {lock['sent']} bytes in all, {lock['weight_bytes']} of weights.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
