"""The stand-in runtime (tests/standin) unpacked once, and sandboxes over it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from enginix.machine.driver import Driver
from enginix.runtime import table
from enginix.runtime.sandbox import Bind, Sandbox

STANDIN = Path(__file__).parents[2] / "standin"
MakeSandbox = Callable[..., Sandbox]


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (shutil.which("bwrap") and shutil.which("busybox")):
        pytest.skip("bubblewrap and busybox are not installed")
    out = tmp_path_factory.mktemp("standin") / "rootfs"
    runtime = table.find_runtime("trtllm-1.2.1")
    script = [str(STANDIN / "rootfs.sh"), str(out), str(runtime.version), str(runtime.site_packages)]
    subprocess.run(["bash", *script], check=True, capture_output=True)
    return out


@pytest.fixture
def make_sandbox(rootfs: Path, tmp_path: Path) -> MakeSandbox:
    def make(
        *binds: Bind, image: bool = True, driver: Driver | None = None, network: bool = False
    ) -> Sandbox:
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        runtime = table.find_runtime("trtllm-1.2.1")
        made = Sandbox(runtime, rootfs if image else None, work, driver or Driver(None), binds, network)
        if image:
            made.prepare()
        return made

    return make
