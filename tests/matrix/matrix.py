"""Runs the tests of what touches a library with its older and newest releases; `make matrix` runs it.

    python tests/matrix/matrix.py                 every row
    python tests/matrix/matrix.py hub nix         rows of these libraries
    python tests/matrix/matrix.py --write         every row, and the table in docs/explanation/verification.md

`make test` runs the environment's own releases. pip installs others into a temporary directory before it;
it stays as it is. Exit status 1 where a row fails. A row that this machine cannot run is skipped with the
reason.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PAGE = ROOT / "docs" / "explanation" / "verification.md"
MARKS = ("<!-- matrix -->\n", "<!-- /matrix -->\n")
SKIPPED = 77

# What asks huggingface_hub; locks and their corpora do not.
HUB = tuple(
    f"tests/python/hub/test_{name}.py"
    for name in ("api", "dataset", "faults", "fetch", "fetch_links", "locking", "token", "tree", "xet")
)
# What runs on transformers inside NVIDIA's images, whose 1.2.1 has 4.57.
IMAGE = (
    "tests/python/model",
    "tests/python/checkpoint/test_transformers.py",
    "tests/python/triton/test_chat.py",
    "tests/python/triton/test_detokenizer.py",
    "tests/python/reference/test_sampling.py",
    "tests/python/reference/test_kv_cache.py",
    "tests/python/gates/test_tampered_answers.py",
    "tests/python/gates/test_tampered_files.py",
    "tests/python/gates/test_tampered_weights.py",
    "tests/python/plan/test_kv_layout.py",
)
TRANSFORMERS = (*IMAGE, "tests/python/checkpoint/test_configurations.py")
MODELOPT = (
    "tests/python/quantize/test_quantize.py",
    "tests/python/quantize/test_formats.py",
    "tests/python/checkpoint/test_modelopt.py",
)
OLDEST_HUB = "huggingface_hub==1.30.0"  # the lower bound of pyproject.toml
NUMPY = "numpy==1.26.4"  # what the environment of the tests is built against


@dataclass(frozen=True)
class Outcome:
    """What a row came to: ``passed`` tests, ``failed`` ones, or the reason why it was skipped."""

    library: str
    versions: str
    passed: int
    failed: int
    seconds: float
    reason: str = ""

    def line(self) -> str:
        state = self.reason or f"{self.passed} passed, {self.failed} failed"
        return f"{self.library:<14} {self.versions:<52} {state} ({self.seconds:.0f} s)"

    def table_row(self) -> str:
        state = f"not run: {self.reason}" if self.reason else f"{self.passed} pass"
        failing = f", {self.failed} fail" if self.failed else ""
        return f"| {self.library} | {self.versions} | {state}{failing} |"


@dataclass(frozen=True)
class LibraryRow:
    """Releases of libraries in front of the tests' environment, and the tests that touch them.

    Attributes:
        requirements: what pip installs.
        words: further options of pip.
    """

    library: str
    requirements: tuple[str, ...]
    tests: tuple[str, ...]
    words: tuple[str, ...] = ()

    def run(self) -> Outcome:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="enginix-matrix-") as overlay:
            words = ["install", "--quiet", "--no-compile", "--target", overlay, *self.words]
            done = subprocess.run(
                ["python3", "-m", "pip", *words, *self.requirements], capture_output=True, text=True
            )
            if done.returncode != 0:
                reason = re.sub(r"\S+://\S+", "the registry", (done.stderr.strip() or "pip failed"))
                return self._outcome("", began, reason.splitlines()[-1][:120])
            env = {**os.environ, "PYTHONPATH": os.pathsep.join((overlay, str(ROOT / "python")))}
            env |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
            line = [sys.executable, "-m", "pytest", "-q", "--timeout", "120", "-p", "no:cacheprovider"]
            done = subprocess.run([*line, *self.tests], cwd=ROOT, env=env, capture_output=True, text=True)
            versions = self._read_versions(env)
        counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
        failed = counts.get("failed", 0) + counts.get("error", 0)
        if failed or done.returncode:
            print(done.stdout[-4000:], file=sys.stderr)
        passed, failed = counts.get("passed", 0), failed or int(done.returncode != 0)
        return Outcome(self.library, versions, passed, failed, time.monotonic() - began)

    def _outcome(self, versions: str, began: float, reason: str) -> Outcome:
        named = versions or ", ".join(self.requirements)
        return Outcome(self.library, named, 0, 0, time.monotonic() - began, reason)

    def _read_versions(self, env: dict[str, str]) -> str:
        names = {"hub": ("huggingface_hub",), "modelopt": ("nvidia-modelopt",)}
        asked = names.get(self.library, ("transformers", "huggingface_hub", "tokenizers"))
        code = (
            f"import importlib.metadata as m; print(', '.join(f'{{n}} {{m.version(n)}}' for n in {asked!r}))"
        )
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        return done.stdout.strip() or "unknown"


@dataclass(frozen=True)
class NixAnswer:
    """What nix_checks.sh printed: tests, failures, and derivations by the names of packages."""

    version: str
    tests: int
    problems: tuple[str, ...]
    derivations: dict[str, str]

    @staticmethod
    def parse(text: str) -> NixAnswer:
        fields: dict[str, Any] = {}
        for line in filter(None, text.splitlines()):
            fields |= json.loads(line)
        stale = () if fields["options"] else ("docs/reference/nixos-options.md differs",)
        return NixAnswer(
            fields["version"], fields["tests"], (*fields["failures"], *stale), fields["derivations"]
        )


def run_nix() -> Outcome:
    """Evaluate with this machine's Nix and with Debian 13's, which must agree on every derivation."""
    began = time.monotonic()
    answers: list[NixAnswer] = []
    with tempfile.TemporaryDirectory(prefix="enginix-matrix-") as work:
        copy = Path(work, "src")
        copy.mkdir()
        archive = subprocess.run(
            ["git", "stash", "create"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
        packed = subprocess.run(
            ["git", "archive", archive or "HEAD"], cwd=ROOT, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", copy], input=packed.stdout, check=True)
        for script in ("nix_checks.sh", "nix_in_debian.sh"):
            done = subprocess.run(["bash", HERE / script, copy], capture_output=True, text=True)
            if done.returncode != 0:
                reason = (done.stderr.strip() or "no Nix").splitlines()[-1][:120]
                skipped = reason if done.returncode == SKIPPED else f"{script} failed: {reason}"
                failed = int(done.returncode != SKIPPED)
                return Outcome("nix", "", 0, failed, time.monotonic() - began, skipped)
            answers.append(NixAnswer.parse(done.stdout))
    ours, theirs = answers
    problems = [f"Nix {answer.version}: {problem}" for answer in answers for problem in answer.problems]
    names = {*ours.derivations, *theirs.derivations}
    problems += [
        f"{name}: another derivation"
        for name in sorted(names)
        if ours.derivations.get(name) != theirs.derivations.get(name)
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    count = ours.tests + theirs.tests + len(names)
    versions = f"Nix {ours.version} and {theirs.version}"
    return Outcome("nix", versions, count - len(problems), len(problems), time.monotonic() - began)


PRE = ("--pre", "--no-deps")
ROWS: tuple[tuple[str, Callable[[], Outcome]], ...] = (
    ("hub", LibraryRow("hub", (OLDEST_HUB,), HUB).run),
    ("hub", LibraryRow("hub", ("huggingface_hub<3",), HUB).run),
    ("modelopt", LibraryRow("modelopt", ("nvidia-modelopt>=0.48.0rc0,<0.49.0rc0",), MODELOPT, PRE).run),
    ("nix", run_nix),
    ("transformers", LibraryRow("transformers", ("transformers==4.57.6", NUMPY), IMAGE).run),
    (
        "transformers",
        LibraryRow("transformers", ("transformers==5.0.0", OLDEST_HUB, NUMPY), TRANSFORMERS).run,
    ),
    ("transformers", LibraryRow("transformers", ("transformers<6", NUMPY), TRANSFORMERS).run),
)
LIBRARIES = tuple(dict.fromkeys(name for name, _ in ROWS))


def write_table(outcomes: Sequence[Outcome]) -> None:
    """Write the table of the page, with the date."""
    page = PAGE.read_text("utf-8")
    head, _, rest = page.partition(MARKS[0])
    _, _, tail = rest.partition(MARKS[1])
    rows = ["| library | versions | tests |", "|---|---|---|", *(outcome.table_row() for outcome in outcomes)]
    text = f"\nRun on {datetime.date.today().isoformat()}:\n\n" + "\n".join(rows) + "\n\n"
    PAGE.write_text(head + MARKS[0] + text + MARKS[1] + tail, "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "libraries", nargs="*", metavar="LIBRARY", help=f"of {', '.join(LIBRARIES)}; default: all"
    )
    parser.add_argument("--write", action="store_true", help="write the table, of all rows")
    args = parser.parse_args()
    if unknown := set(args.libraries) - set(LIBRARIES):
        parser.error(f"unknown library {', '.join(sorted(unknown))}; known: {', '.join(LIBRARIES)}")
    if args.write and args.libraries:
        parser.error("--write takes all rows")
    outcomes = []
    for library, run in ROWS:
        if not args.libraries or library in args.libraries:
            outcomes.append(run())
            print(outcomes[-1].line(), flush=True)
            if args.write:
                write_table(outcomes)
    return int(any(outcome.failed for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
