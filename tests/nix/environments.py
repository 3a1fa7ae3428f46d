"""Check built Python environments: environments.py CHECK NAME=PATH ... (tests/nix/cases/environments.sh).

libraries      each library that a compiled file needs is its wheel's, glibc's, or a listed package's
contents       the distributions of an environment are those of its lock; its Python has no others
requirements   each pinned requirement is locked in that version; dev carries the wheels of runtime
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / "nix" / "python"
SITE = "lib/python3.11/site-packages"


def read_lock(name: str) -> dict[str, Any]:
    lock: dict[str, Any] = json.loads((PYTHON / "locks" / f"{name}.json").read_text())
    return lock


def normalized_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wheels_of(environment: Path) -> list[Path]:
    """Return the unpacked wheels that an environment links; a package of its own is itself."""
    links = {p.resolve() for p in (environment / SITE).glob("*.dist-info")}
    return sorted({path.parents[3] for path in links}) or [environment]


def elf_files(wheel: Path) -> Iterator[Path]:
    # Of some ten thousand files: os.walk and os.open take a third of the time of pathlib.
    for directory, _, names in os.walk(wheel):
        for name in names:
            path = os.path.join(directory, name)
            try:
                file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            except OSError:  # a symbolic link
                assert os.path.islink(path), path
                continue
            try:
                if os.read(file, 4) == b"\x7fELF":
                    yield Path(path)
            finally:
                os.close(file)


def needed_libraries(files: list[Path]) -> dict[str, set[str]]:
    """Return library -> files that need it."""
    needed: dict[str, set[str]] = {}
    if not files:
        return needed
    # The first is named once more: of a single file readelf does not print the name.
    words = ["readelf", "-dW", *map(str, files), str(files[0])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    parts = done.stdout.split("\nFile: ")[1:]
    for file, part in zip([*files, files[0]], parts, strict=True):
        assert part.startswith(f"{file}\n"), part[:300]
        for name in re.findall(r"\(NEEDED\).*\[(.*)\]", part):
            needed.setdefault(name, set()).add(file.name)
    return needed


def check_libraries(environments: dict[str, Path]) -> None:
    table = json.loads((PYTHON / "libraries.json").read_text())
    listed = {library: package for package, names in table["packages"].items() for library in names}
    used: set[str] = set()
    counted, absent_seen = 0, set()
    wheels = {wheel for path in environments.values() for wheel in wheels_of(path)}
    for wheel in sorted(wheels):
        files = list(elf_files(wheel))
        counted += len(files)
        own = {file.name for file in files}
        pname = re.sub(r"^[a-z0-9]{32}-|-[0-9][^-]*$", "", wheel.name)
        absent = set(table["absent"].get(pname, ()))
        # The stub of Triton's Python backend is linked with the interpreter's library, its build input.
        interpreter = {"libpython3.11.so.1.0"} if pname == "tritonserver-cpu" else set()
        for library, by in needed_libraries(files).items():
            if library in listed:
                used.add(library)
            elif library in absent:
                absent_seen.add((pname, library))
            else:
                assert library in own | interpreter | set(table["glibc"]), (wheel.name, library, sorted(by))
    assert counted > 500, counted
    # What nothing needs is not listed.
    assert used == set(listed), set(listed) - used
    every = {(wheel, library) for wheel, names in table["absent"].items() for library in names}
    assert absent_seen == every, every - absent_seen


def check_contents(environments: dict[str, Path]) -> None:
    for name, path in environments.items():
        site = path / SITE
        found = {normalized_name(d.metadata["Name"]): d.version for d in distributions(path=[str(site)])}
        locked = {wheel: entry["version"] for wheel, entry in read_lock(name)["wheels"].items()}
        assert found == locked, (name, found.items() ^ locked.items())
        code = "import sys; print(sys.prefix, sys.version_info[:2], *[p for p in sys.path if 'site' in p])"
        done = subprocess.run([path / "bin/python3", "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == f"{path} (3, 11) {site}", done.stdout


def check_requirements() -> None:
    for path in sorted((PYTHON / "requirements").glob("*.in")):
        wheels = read_lock(path.stem)["wheels"]
        pins = re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==([^\s#]+)", path.read_text(), re.MULTILINE)
        assert pins, path
        for name, version in pins:
            locked = wheels[normalized_name(name)]["version"]
            assert locked.split("+")[0] == version, (path.name, name, version, locked)
    dev, runtime = read_lock("dev")["wheels"], read_lock("runtime")["wheels"]
    assert runtime.items() <= dev.items()
    # The same for another Python, on a machine with a GPU.
    text = (ROOT / "tests" / "gpu" / "wheels.txt").read_text()
    elsewhere = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
    modelopt = read_lock("modelopt")["wheels"]
    assert len(elsewhere) == 14 and elsewhere == {name: modelopt[name]["version"] for name in elsewhere}
    free = set(json.loads((PYTHON / "free-licences.json").read_text()))
    unfree = json.loads((PYTHON / "unfree-licences.json").read_text())
    locks = {path.stem: json.loads(path.read_text())["wheels"] for path in (PYTHON / "locks").glob("*.json")}
    for name, wheels in locks.items():
        for wheel, entry in wheels.items():
            # Of what is not free, only what one environment is for.
            is_allowed = name == "rtx" and entry["license"] == [unfree.get(wheel)]
            assert set(entry["license"]) <= free or is_allowed, (name, wheel)
    assert set(unfree) <= set(locks["rtx"]) and not set(unfree.values()) & free


def main() -> None:
    check, *words = sys.argv[1:]
    environments = {name: Path(path) for name, path in (word.split("=") for word in words)}
    if check == "requirements":
        check_requirements()
    else:
        {"libraries": check_libraries, "contents": check_contents}[check](environments)


if __name__ == "__main__":
    main()
