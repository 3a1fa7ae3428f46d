"""A machine without room: disk and shared memory."""

from __future__ import annotations

import concurrent.futures
import subprocess
import tempfile
import time
from pathlib import Path

from fault_table import fault
from questions import streamed, whole
from setting import Setting

from enginix.errors import MachineError


def inside(script: str, setting: Setting, *more: str) -> tuple[str, ...]:
    """A command that runs the rest in mounts of its own."""
    del setting, more
    return ("unshare", "--mount", "--propagation", "private", "sh", "-ec", f'{script}; exec "$@"', "sh")


@fault
def full_disk(setting: Setting) -> str:
    """/tmp is full"""
    temporary = Path(tempfile.mkdtemp(dir=setting.directory))
    script = f"mount -t tmpfs -o size=64k,nr_inodes=6 none {temporary}"
    words = [*inside(script, setting), *setting.words()]
    environment = {**setting.environment, "TMPDIR": str(temporary)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 5, (done.returncode, done.stderr)
    assert "No space left" in done.stderr and "Traceback" not in done.stderr, done.stderr
    return "refused at start, status 5: no space left"


@fault
def disk_fills_while_serving(setting: Setting) -> str:
    """/tmp fills up while it serves"""
    temporary = Path(tempfile.mkdtemp(dir=setting.directory))
    script = f"mount -t tmpfs -o size=1m none {temporary}; export TMPDIR={temporary}"
    ready = setting.directory / "ready"
    fill = f'sh -c "while ! test -e {ready}; do sleep 0.1; done; head -c 2000000 /dev/zero >$TMPDIR/fill; '
    fill += f'touch {ready}.filled" 2>/dev/null & '
    with setting.serve(wrap=inside(f"{script}; {fill} true", setting)) as s:
        expected = whole(s.client)
        ready.touch()
        while not ready.with_name("ready.filled").exists():
            time.sleep(0.1)
        # Longer than a process without a sign of life is waited for.
        deadline = time.monotonic() + 75
        while time.monotonic() < deadline:
            assert whole(s.client) == expected
            assert streamed(s.client) == expected
            time.sleep(0.5)
    return "nothing changes: serving writes no data"


@fault
def tiny_shared_memory(setting: Setting) -> str:
    """/dev/shm of 3 MiB"""
    words = [*inside("mount -t tmpfs -o size=3m none /dev/shm", setting), *setting.words()]
    done = subprocess.run(
        words, env=setting.environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 5 and "needed for 2 Python model instances" in done.stderr, done.stderr
    return "refused before it starts, status 5, with what is needed"


@fault
def small_shared_memory(setting: Setting) -> str:
    """/dev/shm of 5 MiB, and 64 long prompts at once"""
    with setting.serve(wrap=inside("mount -t tmpfs -o size=5m none /dev/shm", setting)) as s:
        expected = whole(s.client)
        outcomes = []

        def tried(_: int) -> str:
            try:
                return "answer" if whole(s.client, "word " * 1500, 4) else "empty"
            except MachineError:
                return "error"

        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            outcomes = list(pool.map(tried, range(64)))
        after = "goes on"
        try:
            assert whole(s.client) == expected
        except MachineError:
            after = "refuses from then on"
    counts = ", ".join(f"{outcomes.count(o)} {o}s" for o in sorted(set(outcomes)))
    return f"{counts}; none hangs; the server {after}"
