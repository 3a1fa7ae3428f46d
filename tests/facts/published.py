"""What a package registry publishes of a package: its versions and its dependencies, as pip reads them."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from enginix import process
from enginix.errors import HubError, MachineError

HERE = Path(__file__).resolve().parent
# pip of the interpreter that has one: the environments of the tests have none.
PIP = ("python3", "-m", "pip")
TIMEOUT = 300
_FIX = "check the network and pip's settings (pip config list), and run again"


@dataclass(frozen=True)
class PublishedPackage:
    """One version of a package.

    Attributes:
        requires: its ``Requires-Dist`` lines.
    """

    name: str
    version: str
    requires: tuple[str, ...]


def list_versions(name: str, pip: Sequence[str] = PIP) -> list[str]:
    """Return the versions that pip finds for a package, newest first, candidates among them.

    Raises:
        HubError: pip reaches no registry, or the registry has no such package.
        MachineError: there is no pip.
    """
    answer = _run_pip(pip, ["index", "versions", "--pre", name], name)
    listed = re.search(r"^Available versions: (.+)$", answer, re.MULTILINE)
    if listed is None:
        raise HubError(f"pip's answer lists no versions: {answer[:200]!r}", where=name, fix=_FIX)
    versions = [_parse_version(name, text) for text in re.split(r",\s*", listed[1].strip())]
    return [str(version) for version in sorted(versions, reverse=True)]


def read_package(name: str, version: str, pip: Sequence[str] = PIP) -> PublishedPackage:
    """Return the metadata of one version. No wheel is installed and no code of the package is run.

    Raises:
        HubError: the registry lacks the version or is not reached, or its metadata contradicts its name.
        MachineError: there is no pip.
    """
    where = f"{name} {version}"
    with tempfile.TemporaryDirectory(prefix="enginix-facts-") as work:
        report = Path(work, "report.json")
        words = ["install", "--dry-run", "--no-deps", "--ignore-installed", "--ignore-requires-python"]
        words += ["--no-build-isolation", "--pre", "--report", str(report), f"{name}=={version}"]
        _run_pip(pip, words, where)
        try:
            metadata = json.loads(report.read_text("utf-8"))["install"][0]["metadata"]
            read = (normalize(metadata["name"]), str(Version(metadata["version"])))
            requires = tuple(str(line) for line in metadata.get("requires_dist", ()))
        except (OSError, ValueError, KeyError, IndexError, TypeError, InvalidVersion) as e:
            raise HubError(f"pip's report cannot be read: {e}", where=where, fix=_FIX) from e
    if read != (normalize(name), str(Version(version))):
        raise HubError(f"the metadata is of {read[0]} {read[1]}", where=where, fix="tell the registry")
    return PublishedPackage(normalize(name), str(Version(version)), requires)


def normalize(name: str) -> str:
    """Return a package's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _parse_version(name: str, text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as e:
        raise HubError(f"a version that is none: {text!r}", where=name, fix=_FIX) from e


def _run_pip(pip: Sequence[str], words: list[str], where: str) -> str:
    # pip's own settings are the user's: an index, a proxy, certificates.
    env = {n: v for n, v in os.environ.items() if n.startswith("PIP_") or n.lower().endswith("_proxy")}
    env |= {name: os.environ[name] for name in ("HOME", "XDG_CONFIG_HOME") if name in os.environ}
    env |= {"PYTHONPATH": str(HERE), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    env |= {"PIP_RETRIES": "1", "PIP_NO_COLOR": "1"}
    done = process.run_program([*pip, *words], timeout=TIMEOUT, env=env, check=False)
    if done.returncode == 0:
        return done.stdout
    if "No module named pip" in done.stderr:
        raise MachineError("there is no pip", where=" ".join(pip), fix="install python3-pip")
    raise HubError(f"pip found nothing: {_last_error(done.stderr)}", where=where, fix=_FIX)


def _last_error(text: str) -> str:
    """Return pip's last line, without addresses and without its list of all versions."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line] or lines or ["no reason given"]
    plain = re.sub(r"\s*\(from versions:.*?\)", "", re.sub(r"\S+://\S+", "the registry", errors[-1]))
    return plain.removeprefix("ERROR: ")[:200]
