"""The environments of tests/hostpkgs/environments.sh, for tests that run something in one."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent / "hostpkgs" / "environments.sh"


class MissingEnvironment(Exception):
    """An environment is not built; says how to build it."""


@cache
def environment(name: str) -> Path:
    """Return the store path of a built environment, such as ``edgellm``; its Python is ``bin/python3``."""
    done = subprocess.run([SCRIPT, "--existing", name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingEnvironment(done.stderr.strip())
    return Path(done.stdout.strip())
