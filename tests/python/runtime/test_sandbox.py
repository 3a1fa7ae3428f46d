"""Commands inside the stand-in runtime, by the code that runs NVIDIA's image."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from enginix.errors import MachineError
from enginix.runtime import table
from enginix.runtime.child import Child, descendants, started
from enginix.runtime.driver import Driver, find, store_closure
from enginix.runtime.sandbox import Bind, Room, reading

PYTHON = Path(__file__).parents[3] / "python"


def inside(room: Room, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        room.command(["sh", "-c", script]), env={}, capture_output=True, text=True, check=False, timeout=60
    )


def test_sees_the_image_and_not_the_host(room, tmp_path):
    (tmp_path / "secret").write_text("x")
    done = inside(
        room(), f"ls /; test -e {tmp_path}/secret && echo seen; test -e /usr/bin/python3 && echo python"
    )
    assert "seen" not in done.stdout and "python" in done.stdout
    assert set(done.stdout.split()) >= {"usr", "proc", "dev", "tmp", "w", "etc"}


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_exit_statuses_pass_through(room, script, status):
    assert inside(room(), script).returncode == status


def test_environment_is_explicit(room, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LD_PRELOAD", "/nowhere")
    said = dict(x.split("=", 1) for x in inside(room(), "env").stdout.splitlines() if "=" in x)
    assert "HF_TOKEN" not in said and "LD_PRELOAD" not in said
    assert said["HOME"] == "/w/home" and said["HF_HUB_OFFLINE"] == "1"
    assert said["LD_LIBRARY_PATH"].startswith("/run/opengl-driver/lib:")


def test_every_private_directory_is_writable_and_nothing_else(room):
    done = inside(
        room(),
        'for d in "$HOME" "$TMPDIR" "$XDG_CACHE_HOME" "$TRITON_CACHE_DIR" /tmp; do '
        "touch $d/x || echo bad $d; done; "
        "for d in /usr /opt /nix/store; do touch $d/x 2>/dev/null && echo bad $d; done; exit 0",
    )
    assert "bad" not in done.stdout


def test_the_image_stays_as_it_is(room, rootfs):
    before = sorted(p.name for p in (rootfs / "etc").iterdir())
    inside(room(), "echo evil > /etc/evil; rm -f /usr/bin/python3")
    assert (
        sorted(p.name for p in (rootfs / "etc").iterdir()) == before and (rootfs / "usr/bin/python3").exists()
    )


def test_builds_have_no_network_and_servers_have(room):
    # The loopback device alone, against what this process sees.
    script = "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"
    assert inside(room(), script).stdout.split() == ["lo"]
    here = [x.split(":")[0].strip() for x in Path("/proc/net/dev").read_text().splitlines()[2:]]
    assert inside(room(network=True), script).stdout.split() == here


def test_the_user_has_a_name(room):
    assert inside(room(), "id -un").stdout.strip() == "enginix"


def test_links_of_a_model_directory_are_followed(room, tmp_path):
    blobs, model = tmp_path / "blobs", tmp_path / "model"
    blobs.mkdir()
    model.mkdir()
    (blobs / "a").write_text("weights")
    (model / "model.safetensors").symlink_to(blobs / "a")
    (model / "dangling").symlink_to(blobs / "none")
    done = inside(room(*reading([model])), f"cat {model}/model.safetensors; ls {blobs}")
    assert done.stdout.startswith("weights") and "none" not in done.stdout
    assert "Read-only" in inside(room(*reading([model])), f"touch {model}/x").stderr


def test_a_writable_bind(room, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    inside(room(Bind(out, writable=True)), f"echo made > {out}/file")
    assert (out / "file").read_text() == "made\n"


def test_the_driver_is_at_one_place(room, tmp_path):
    root, package = tmp_path / "driver", tmp_path / "package"
    (root / "lib").mkdir(parents=True)
    package.mkdir()
    (package / "libcuda.so.1").write_text("driver")
    (root / "lib" / "libcuda.so.1").symlink_to(package / "libcuda.so.1")
    assert store_closure(root) == [package / "libcuda.so.1"]
    assert inside(room(driver=find(root)), "cat /run/opengl-driver/lib/libcuda.so.1").stdout == "driver"
    loose = Driver(None, (package / "libcuda.so.1",))
    assert inside(room(driver=loose), "cat /run/opengl-driver/lib/libcuda.so.1").stdout == "driver"


def test_no_bubblewrap(room, monkeypatch):
    made = room()
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("ENGINIX_BWRAP", raising=False)
    with pytest.raises(MachineError, match="bubblewrap is not installed"):
        made.command(["true"])


def test_a_long_work_directory_is_refused_outside_an_image(tmp_path):
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    with pytest.raises(MachineError, match="longer than"):
        Room(table.find("trtllm-1.2.1"), None, deep).prepare()


def test_an_unwritable_work_directory_is_refused(room, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "home").write_text("a file where HOME should be")
    with pytest.raises(MachineError, match="HOME cannot be written"):
        room()


def command_line(*words: str, rootfs: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "enginix",
        "runtime",
        "run",
        "trtllm-1.2.1",
        "--rootfs",
        str(rootfs),
        "--",
        *words,
    ]


def start(rootfs: Path, script: str) -> subprocess.Popen[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PYTHON)}
    return subprocess.Popen(
        command_line("sh", "-c", script, rootfs=rootfs), env=env, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_command(rootfs, number):
    name = number.name.removeprefix("SIG")
    with start(rootfs, f'trap "echo got; exit 5" {name}; echo up; while :; do sleep 0.05; done') as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.stdout.read() == "got\n"
        assert process.wait(20) == 5


def test_a_killed_wrapper_takes_everything_along(rootfs):
    with start(rootfs, "setsid sleep 543 & echo up; sleep 543") as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        below = descendants(process.pid)
        assert below
        process.kill()
        process.wait(10)
        deadline = time.monotonic() + 10
        while any(started(p) == t for p, t in below.items()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(started(p) == t for p, t in below.items())


def test_the_end_of_the_command_ends_what_it_left_behind(room):
    with Child(room(), ["sh", "-c", "setsid sleep 544 & sleep 0.3; exit 4"], capture=True) as child:
        time.sleep(0.2)
        below = descendants(child.process.pid)
        assert child.process.wait(20) == 4
    assert below and not any(started(p) == t for p, t in below.items())


def test_without_user_namespaces(rootfs):
    line = " ".join(command_line("true", rootfs=rootfs))
    script = f"echo 0 > /proc/sys/user/max_user_namespaces && exec {line}"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PYTHON)}
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", script], env=env, capture_output=True, text=True, check=False
    )
    if "Permission denied" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("no nested user namespaces here to switch off")
    assert done.returncode == 5 and "user namespaces are not allowed here" in done.stderr
    assert "user.max_user_namespaces" in done.stderr and "RestrictNamespaces" in done.stderr


@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root to become another user"
)
def test_as_a_unit_of_another_user():
    """As systemd runs a unit: another user, no new privileges, no capabilities, an empty environment."""
    busybox = shutil.which("busybox")
    if not (busybox and shutil.which("bwrap")):
        pytest.skip("bubblewrap and busybox are not installed")
    with tempfile.TemporaryDirectory(prefix="enginix-unit-") as name:
        home = Path(name)
        for made in ("root/bin", "root/etc", "tmp", "package"):
            (home / made).mkdir(parents=True)
        shutil.copy(busybox, home / "root/bin/busybox")
        (home / "root/bin/sh").symlink_to("busybox")
        shutil.copytree(
            PYTHON / "enginix", home / "package/enginix", ignore=shutil.ignore_patterns("__pycache__")
        )
        subprocess.run(["chmod", "-R", "a+rX", str(home)], check=True)
        (home / "tmp").chmod(0o777)
        line = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
            "--inh-caps=-all",
        ]
        line += ["env", "-i", "PATH=/usr/bin:/bin", f"TMPDIR={home}/tmp", f"PYTHONPATH={home}/package"]
        line += [
            "PYTHONDONTWRITEBYTECODE=1",
            os.path.realpath(sys.executable),
            "-m",
            "enginix",
            "runtime",
            "run",
        ]
        line += ["trtllm-1.2.1", "--rootfs", f"{home}/root", "--", "/bin/sh", "-c", "busybox id -un; exit 9"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (9, "enginix\n"), done.stderr
        assert not list((home / "tmp").iterdir())


def test_inside_a_unit_that_restricts_namespaces(rootfs, tmp_path):
    """systemd's RestrictNamespaces= makes clone fail with EPERM; a bwrap that answers so stands in."""
    wrapper = tmp_path / "bwrap"
    wrapper.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace, likely because the kernel does "
        "not allow non-privileged user namespaces.' >&2\nexit 1\n"
    )
    wrapper.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PYTHON), "ENGINIX_BWRAP": str(wrapper)}
    done = subprocess.run(
        command_line("true", rootfs=rootfs), env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 5 and "RestrictNamespaces" in done.stderr
