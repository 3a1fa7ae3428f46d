"""Compares the tables with what pip's registry has; `make facts` runs it.

    python tests/facts/facts.py            what is older, what contradicts, with the source of each
    python tests/facts/facts.py --record   the same, and writes tests/facts/published.json anew

Exit status 0: nothing contradicts; 1: a table contradicts a published fact; 4: a package could not be read.
pip reads the metadata, so its settings say where from; a mirror may lack what its source has, so a release
that is not told may exist all the same. A test compares the tables with the record, without a network.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests" / "facts")]

import published  # noqa: E402
from packaging.requirements import InvalidRequirement, Requirement  # noqa: E402
from packaging.specifiers import SpecifierSet  # noqa: E402
from packaging.version import Version  # noqa: E402

from enginix import console  # noqa: E402
from enginix.errors import EXIT_CHECK_FAILED, EXIT_OK, EnginixError, HubError  # noqa: E402
from enginix.files import dump_json  # noqa: E402
from enginix.tables import load_table  # noqa: E402

RECORD = ROOT / "tests" / "facts" / "published.json"
REQUIREMENTS = ROOT / "nix" / "python" / "requirements"
PYPROJECT = ROOT / "python" / "pyproject.toml"
RUNTIMES = "data/runtime/runtimes.json"
# A field of a runtime's row: the distribution that Requires-Dist names.
DISTRIBUTIONS = {
    "modelopt": "nvidia-modelopt",
    "nccl": "nvidia-nccl-cu13",
    "torch": "torch",
    "transformers": "transformers",
}
SCOPE = "read from the registry that pip is set to; a mirror of one may lack newer releases"
# Upstream packages that no requirement of this project pins.
WATCHED = ("tensorrt-llm", "tensorrt-edgellm", "tensorrt")


@dataclass(frozen=True)
class Finding:
    """A fact of a table that is older than a published one, or contradicts it.

    Attributes:
        contradicts: the table is wrong; else it is older, which may be meant.
        where: table and row.
        source: what was read.
    """

    contradicts: bool
    where: str
    text: str
    source: str

    def line(self) -> str:
        return (
            f"{'contradicts' if self.contradicts else 'older':<12} {self.where}: {self.text} ({self.source})"
        )


def read_pins() -> dict[str, dict[str, str]]:
    """Return the pinned version of each package, by file of nix/python/requirements."""
    pins: dict[str, dict[str, str]] = {}
    for path in sorted(REQUIREMENTS.glob("*.in")):
        for line in path.read_text("utf-8").splitlines():
            if match := re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)", line):
                pins.setdefault(published.normalize(match[1]), {})[path.name] = match[2]
    return pins


def read_bounds() -> dict[str, list[tuple[str, SpecifierSet]]]:
    """Return the bounds of each package in pyproject.toml, with the extra that has them."""
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    groups = {"dependencies": project["dependencies"], **project["optional-dependencies"]}
    bounds: dict[str, list[tuple[str, SpecifierSet]]] = {}
    for group, lines in groups.items():
        for requirement in map(Requirement, lines):
            if requirement.name != "enginix":
                bounds.setdefault(published.normalize(requirement.name), []).append(
                    (group, requirement.specifier)
                )
    return bounds


def list_recorded_versions() -> list[tuple[str, str]]:
    """Return the packages and versions whose metadata the rows of runtimes are taken from."""
    rows = load_table("runtimes")["runtimes"].values()
    from_package = [row for row in rows if "package" in row["sources"].values()]
    return [
        ("tensorrt-llm", row["tensorrtLlm"])
        if row.get("tensorrtLlm")
        else ("tensorrt-edgellm", row["edgellm"])
        for row in from_package
    ]


def read_registry() -> tuple[dict[str, Any], list[EnginixError]]:
    """Read every package that a table speaks of: a record, and what could not be read."""
    record: dict[str, Any] = {"read": datetime.date.today().isoformat(), "newest": {}, "requires": {}}
    failures: list[EnginixError] = []
    for name in sorted({*WATCHED, *read_pins(), *read_bounds()}):
        try:
            versions = [Version(text) for text in published.list_versions(name)]
        except EnginixError as e:
            failures.append(e)
            continue
        stable = [str(v) for v in versions if not v.is_prerelease]
        record["newest"][name] = {"stable": stable[0] if stable else None, "any": str(versions[0])}
    for name, version in list_recorded_versions():
        try:
            package = published.read_package(name, version)
        except EnginixError as e:
            failures.append(e)
            continue
        record["requires"][f"{name} {version}"] = sorted(filter(_is_compared, package.requires))
    return record, failures


def _is_compared(line: str) -> bool:
    companions = load_table("runtimes")["runtimes"]["edgellm-0.11.0"]["companions"]
    names = {"tensorrt", *DISTRIBUTIONS.values(), *map(published.normalize, companions)}
    return published.normalize(_parse_requirement(line).name) in names


def _parse_requirement(line: str) -> Requirement:
    try:
        return Requirement(line)
    except InvalidRequirement as e:
        raise HubError(
            f"a requirement that is none: {line!r}", where="Requires-Dist", fix="tell the registry"
        ) from e


def compare_tables(record: Mapping[str, Any]) -> list[Finding]:
    """Compare every table with a record of the registry."""
    findings: list[Finding] = []
    for runtime, row in load_table("runtimes")["runtimes"].items():
        if row.get("tensorrtLlm"):
            findings += compare_runtime(runtime, row, record["requires"])
        elif row.get("edgellm"):
            findings += compare_edgellm(runtime, row, record["requires"])
    return findings + compare_releases(record["newest"]) + compare_pins(record["newest"])


def compare_runtime(runtime: str, row: Mapping[str, Any], requires: Mapping[str, list[str]]) -> list[Finding]:
    """Compare a row with the package's Requires-Dist, where the row names it as a source."""
    package = f"tensorrt-llm {row['tensorrtLlm']}"
    lines = requires.get(package)
    if lines is None:
        return []
    source, findings = f"Requires-Dist of {package}", []
    declared = {published.normalize(r.name): r.specifier for r in map(_parse_requirement, lines)}

    def add(field: str, text: str) -> None:
        findings.append(Finding(True, f"{RUNTIMES} {runtime}.{field}", text, source))

    for field, distribution in DISTRIBUTIONS.items():
        told, found = row[field], declared.get(distribution)
        if told is None and found is not None:
            add(field, f"null, published {distribution}{found}")
        elif told is not None and row["sources"][field] == "package" and SpecifierSet(told) != found:
            add(field, f"{told}, published {found if found is not None else 'nothing'}")
    tensorrt = declared.get("tensorrt")
    if row["sources"]["enginePath"] == "package" and row["enginePath"] != (tensorrt is not None):
        add("enginePath", f"{row['enginePath']}, published {'tensorrt' if tensorrt else 'no tensorrt'}")
    if row["tensorrt"] is not None and (tensorrt is None or row["tensorrt"] not in tensorrt):
        add("tensorrt", f"{row['tensorrt']}, published {tensorrt}")
    return findings


def compare_edgellm(runtime: str, row: Mapping[str, Any], requires: Mapping[str, list[str]]) -> list[Finding]:
    """Compare the row of TensorRT Edge-LLM with what its exporter requires."""
    package = f"tensorrt-edgellm {row['edgellm']}"
    declared: dict[str, set[str]] = {}
    for requirement in map(_parse_requirement, requires.get(package, [])):
        declared.setdefault(published.normalize(requirement.name), set()).add(str(requirement.specifier))
    told = {
        DISTRIBUTIONS[field]: row[field] for field in DISTRIBUTIONS if row["sources"].get(field) == "package"
    } | {published.normalize(name): f"=={version}" for name, version in row["companions"].items()}
    return [
        Finding(
            True,
            f"{RUNTIMES} {runtime}.{name}",
            f"{value}, published {', '.join(sorted(declared.get(name, {'nothing'})))}",
            f"Requires-Dist of {package}",
        )
        for name, value in told.items()
        if package in requires and value not in declared.get(name, set())
    ]


def compare_releases(newest: Mapping[str, Mapping[str, str | None]]) -> list[Finding]:
    """Tell releases of the runtimes' packages that no row has."""
    rows = load_table("runtimes")["runtimes"].values()
    findings = []
    for package, key in (("tensorrt-llm", "tensorrtLlm"), ("tensorrt-edgellm", "edgellm")):
        have = {row[key] for row in rows if row.get(key)}
        for release in sorted({v for v in newest.get(package, {}).values() if v} - have):
            text = f"newest row {max(have, key=Version)}, pip finds {release}"
            findings.append(Finding(False, f"{RUNTIMES} {package}", text, "versions that pip lists"))
    return findings


def compare_pins(newest: Mapping[str, Mapping[str, str | None]]) -> list[Finding]:
    """Tell pins that are older, and bounds that exclude the newest release."""
    findings, source = [], "versions that pip lists"
    for package, files in read_pins().items():
        stable = newest.get(package, {}).get("stable")
        for file, version in files.items():
            if stable is not None and Version(version) < Version(stable):
                text = f"pinned {version}, pip finds {stable}"
                findings.append(Finding(False, f"nix/python/requirements/{file} {package}", text, source))
    for package, groups in read_bounds().items():
        stable = newest.get(package, {}).get("stable")
        for group, specifier in groups:
            if stable is not None and stable not in specifier:
                text = f"{specifier} excludes {stable}"
                findings.append(Finding(False, f"python/pyproject.toml [{group}] {package}", text, source))
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write tests/facts/published.json")
    args = parser.parse_args()
    try:
        record, failures = read_registry()
        findings = compare_tables(record)
    except EnginixError as e:
        return console.report_error(e)
    for finding in sorted(findings, key=lambda f: (not f.contradicts, f.where)):
        print(finding.line())
    for failure in failures:
        print(f"not read     {failure}".replace("\n", "\n             "))
    contradictions = sum(finding.contradicts for finding in findings)
    print(
        f"{len(record['newest'])} packages and {len(record['requires'])} versions read on {record['read']}: "
        f"{contradictions} contradict, {len(findings) - contradictions} older, {len(failures)} not read\n"
        f"{SCOPE}"
    )
    if args.record:
        if failures:
            print("error: the record is not written, as not everything was read", file=sys.stderr)
        else:
            RECORD.write_text(dump_json(record), "utf-8")
    if contradictions:
        return EXIT_CHECK_FAILED
    return HubError.exit_code if failures else EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
