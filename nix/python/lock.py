"""Write the locks of the Python environments from their requirements.

    python3.11 nix/python/lock.py [--upgrade] [NAME ...]

For each NAME, pip resolves requirements/NAME.in, and locks/NAME.json gets every wheel: name, version,
licence, file and SHA-256 for each system. A version that is in the lock already stays, unless --upgrade is
given. Needs pip 25 or newer. Where pip looks for wheels is pip's own configuration; a lock names no index,
except that of a wheel that PyPI does not carry.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PYTHON = "3.11"  # nix/python/default.nix says why
GLIBC_MINOR = 39  # NVIDIA's wheels for aarch64 are for Ubuntu 24.04

# Projects whose wheels PyPI does not carry: the index that does.
OWN_INDEX = {"torch": "https://download.pytorch.org/whl/cpu"}

# An environment that carries the very wheels of another, and more.
BASES = {"dev": "runtime", "lint": "core", "rtx": "runtime"}

# Installed without its dependencies: tritonserver alone is taken out of the wheel.
ALONE = {"tritonserver"}

# SPDX identifiers of licences that a wheel states in other words.
LICENCE_WORDS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License v2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "The MIT License (MIT)": "MIT",
}
SPDX_TERM = re.compile(r"[A-Za-z0-9.-]+(?: WITH [A-Za-z0-9.-]+)?")


def normalized_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def run_pip(arguments: list[str]) -> list[dict[str, Any]]:
    """Return what pip would install, as its report has it."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        command = [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--dry-run", "--ignore-installed", "--only-binary", ":all:", "--report", str(report)),
            *("--target", directory, *arguments),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LookupError(done.stderr.strip())
        installed: list[dict[str, Any]] = json.loads(report.read_text())["install"]
        return installed


def platform_options(machine: str) -> list[str]:
    """Return pip's options for a wheel of another machine than this one."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC_MINOR, 4, -1)]
    platforms += [f"manylinux2014_{machine}", f"linux_{machine}", "any"]
    return ["--python-version", PYTHON, *(word for name in platforms for word in ("--platform", name))]


def licence_terms(metadata: dict[str, Any]) -> list[str]:
    """Return the SPDX identifiers that a wheel's metadata states, or that of unfree-licences.json."""
    unfree = json.loads((HERE / "unfree-licences.json").read_text())
    if licence := unfree.get(normalized_name(metadata["name"])):
        return [str(licence)]
    words = metadata.get("license_expression") or (metadata.get("license") or "").strip()
    classifiers = [
        c.split("::")[-1].strip() for c in metadata.get("classifier", []) if c.startswith("License ::")
    ]
    if classifiers and (not words or "\n" in words or words in {"BSD", "Dual License"}):
        words = classifiers[0]
    words = words.split("\n", 1)[0]
    expression = LICENCE_WORDS.get(words, words)
    terms = [t for t in SPDX_TERM.findall(expression) if t not in {"AND", "OR"}]
    free = json.loads((HERE / "free-licences.json").read_text())
    if not terms or not set(terms) <= set(free):
        raise SystemExit(
            f"lock: {metadata['name']} {metadata['version']} states its licence as {words!r}; if it is free, "
            "add its SPDX identifier to free-licences.json, or the wheel's words to LICENCE_WORDS"
        )
    return sorted(set(terms))


def homepage_of(metadata: dict[str, Any]) -> str | None:
    """Return the project's page, from the field that has had several names."""
    links = dict(link.split(", ", 1) for link in metadata.get("project_url", []))
    by_label = {label.lower(): url for label, url in links.items()}
    for label in ("homepage", "home", "source", "source code", "repository", "github", "code"):
        if label in by_label:
            return str(by_label[label])
    return metadata.get("home_page") or next(iter(links.values()), None)


def file_entry(item: dict[str, Any]) -> dict[str, str]:
    """Return the file and hash of one line of pip's report, and its address if PyPI does not carry it."""
    download = item["download_info"]
    file = download["url"].rsplit("/", 1)[1].replace("%2B", "+")
    entry = {"file": file, "sha256": download["archive_info"]["hashes"]["sha256"]}
    name = normalized_name(item["metadata"]["name"])
    if "+" in item["metadata"]["version"]:
        entry["url"] = f"{OWN_INDEX[name]}/{file.replace('+', '%2B')}"
    return entry


def lock_path(name: str) -> Path:
    return HERE / "locks" / f"{name}.json"


def read_lock(name: str) -> dict[str, Any]:
    """Return a lock, or an empty one before the first resolution."""
    path = lock_path(name)
    lock: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return lock


def resolve_lock(name: str, upgrade: bool) -> dict[str, Any]:
    """Return the lock of an environment, with the versions of its last one unless ``upgrade``."""
    with tempfile.TemporaryDirectory() as directory:
        constraints = Path(directory) / "constraints.txt"
        pinned = {} if upgrade else dict(read_lock(name).get("wheels", {}))
        if name in BASES:
            pinned |= read_lock(BASES[name])["wheels"]
        pins = [f"{wheel}=={entry['version']}\n" for wheel, entry in pinned.items()]
        constraints.write_text("".join(pins))
        options = ["--no-deps"] if name in ALONE else []
        items = run_pip([*options, "-c", str(constraints), "-r", str(HERE / "requirements" / f"{name}.in")])
    wheels = {}
    for item in items:
        metadata = item["metadata"]
        wheel = normalized_name(metadata["name"])
        entry: dict[str, Any] = {
            "version": metadata["version"],
            "license": licence_terms(metadata),
            "description": metadata.get("summary", "").strip().rstrip("."),
        }
        if homepage := homepage_of(metadata):
            entry["homepage"] = homepage
        first = file_entry(item)
        if first["file"].endswith("-any.whl"):
            entry["files"] = {"any": first}
        else:
            entry["files"] = {"x86_64-linux": first}
            requirement = f"{wheel}=={metadata['version']}"
            try:
                [other] = run_pip(["--no-deps", *platform_options("aarch64"), requirement])
                entry["files"]["aarch64-linux"] = file_entry(other)
            except LookupError:
                pass  # no wheel for that system: the environment does not exist there
        wheels[wheel] = entry
    return {"python": PYTHON, "wheels": dict(sorted(wheels.items()))}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--upgrade", action="store_true", help="take new versions of what no requirement pins"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="environments; all by default")
    arguments = parser.parse_args()
    running = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if running != PYTHON:
        raise SystemExit(
            f"lock: this is Python {running}; markers are read for {PYTHON}. Run it with python{PYTHON}."
        )
    known = sorted(
        (path.stem for path in (HERE / "requirements").glob("*.in")), key=lambda n: (n in BASES, n)
    )
    for name in arguments.names or known:
        if name not in known:
            raise SystemExit(f"lock: there is no requirements/{name}.in; there are {', '.join(known)}")
        path = lock_path(name)
        try:
            lock = resolve_lock(name, arguments.upgrade)
        except LookupError as error:
            raise SystemExit(f"lock: pip resolves no {name}: {error}") from None
        path.write_text(json.dumps(lock, indent=2) + "\n")
        sys.stderr.write(f"{path.relative_to(HERE)}: {len(lock['wheels'])} wheels\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
