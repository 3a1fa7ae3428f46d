"""The command and environment of a gateway."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import enginix
from enginix import process
from enginix.errors import MachineError, UsageError
from enginix.optional_libraries import missing_extra
from enginix.ports import LOOPBACK

# The oldest LiteLLM that the tests run.
LEAST_LITELLM = "1.83"


@dataclass(frozen=True)
class GatewayOptions:
    """Options of a start beyond the description, without secrets.

    Attributes:
        spec: path of the description.
        start_timeout: seconds within which every server behind must answer.
        exit_timeout: seconds for running answers to end at a stop.
        is_watched: a person at a terminal waits for the start.
    """

    spec: str
    host: str
    port: int
    start_timeout: float
    exit_timeout: int
    is_watched: bool = False

    @staticmethod
    def parse(text: str) -> GatewayOptions:
        """Parse the text of :meth:`dump`."""
        return GatewayOptions(**json.loads(text))

    def dump(self) -> str:
        """Return the options as one word of a command line."""
        return json.dumps(asdict(self), sort_keys=True)


def build_gateway_command(python: Path, options: GatewayOptions) -> list[str]:
    """Return the command line of the gateway's process; where it crashes, its log says in which function."""
    return [str(python), "-X", "faulthandler", str(Path(__file__).with_name("main.py")), options.dump()]


def build_gateway_environment() -> dict[str, str]:
    """Return the whole environment; keys and tokens of the caller are not inherited."""
    passed = {k: os.environ[k] for k in ("CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET") if k in os.environ}
    return process.build_environment(
        {
            **passed,
            "PYTHONPATH": str(Path(enginix.__file__).parents[1]),
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
    )


def find_gateway_python(given: Path | None) -> Path:
    """Return the interpreter that runs the gateway: the given one, $ENGINIX_GATEWAY_PYTHON's, or this one."""
    # Not resolved: an environment's python3 may be a link to the interpreter without its libraries.
    return Path(given or os.environ.get("ENGINIX_GATEWAY_PYTHON") or sys.executable).absolute()


def require_litellm(python: Path) -> str:
    """Return LiteLLM's version in an environment.

    Raises:
        MachineError: LiteLLM or a library of its proxy is missing, or the version is older than those tested.
    """
    script = (
        "import importlib.util as u\n"
        "from importlib.metadata import version\n"
        "print(version('litellm') if u.find_spec('litellm') else '', "
        "*[n for n in ('fastapi', 'uvicorn', 'httpx', 'orjson') if not u.find_spec(n)])"
    )
    done = process.run_program([python, "-c", script], check=False)
    if done.returncode or not done.stdout.endswith("\n"):
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise MachineError(
            f"is no Python that runs: {lines[-1]}",
            where=python,
            fix="pass a python3 that has litellm, or leave it out where this Python has it",
        )
    # The version is empty where LiteLLM is missing.
    version, *missing = done.stdout.rstrip("\n").split(" ")
    if not version or missing:
        names = [name for name in (*missing, "" if version else "litellm") if name] or ["litellm"]
        state = "is not installed" if len(names) == 1 else "are not installed"
        raise missing_extra("gateway", f"{', '.join(names)} {state}", "gateway", python)
    if _parse_litellm_version(version) < _parse_litellm_version(LEAST_LITELLM):
        raise MachineError(
            f"litellm {version} is older than {LEAST_LITELLM}",
            where=python,
            fix=f"--python of an environment with litellm {LEAST_LITELLM} or newer",
        )
    return version


def _parse_litellm_version(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: 1.83.7.post1 is (1, 83, 7)."""
    return tuple(int(n) for n in re.match(r"[\d.]*", version)[0].split(".") if n)  # type: ignore[index]


def check_host(host: str, *, has_keys: bool) -> None:
    """Refuse a gateway that is reachable from outside without keys.

    Raises:
        UsageError: the address is reachable from outside, and no key is configured.
    """
    if host not in LOOPBACK and not has_keys:
        raise UsageError(
            f"{host} is reachable by others, and there is no key",
            where="--host",
            fix="keyFile or clients in the description, or 127.0.0.1",
        )
