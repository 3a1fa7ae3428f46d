"""Commands inside the stand-in runtime, by the code that runs NVIDIA's image."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from enginix.errors import MachineError
from enginix.machine.driver import Driver, find_driver, find_store_closure
from enginix.process_group import list_descendants, read_start_time
from enginix.runtime import table
from enginix.runtime.child import Child
from enginix.runtime.sandbox import Bind, Sandbox, make_read_binds

PYTHON = Path(__file__).parents[3] / "python"


def inside(sandbox: Sandbox, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        sandbox.command(["sh", "-c", script]),
        env={},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_sees_the_image_and_not_the_host(make_sandbox, tmp_path):
    (tmp_path / "secret").write_text("x")
    done = inside(
        make_sandbox(),
        f"ls /; test -e {tmp_path}/secret && echo seen; test -e /usr/bin/python3 && echo python",
    )
    assert "seen" not in done.stdout and "python" in done.stdout
    assert set(done.stdout.split()) >= {"usr", "proc", "dev", "tmp", "w", "etc"}


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_exit_statuses_pass_through(make_sandbox, script, status):
    assert inside(make_sandbox(), script).returncode == status


def test_environment_is_explicit(make_sandbox, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LD_PRELOAD", "/nowhere")
    said = dict(x.split("=", 1) for x in inside(make_sandbox(), "env").stdout.splitlines() if "=" in x)
    assert "HF_TOKEN" not in said and "LD_PRELOAD" not in said
    assert said["HOME"] == "/w/home" and said["HF_HUB_OFFLINE"] == "1"
    assert said["LD_LIBRARY_PATH"].startswith("/run/opengl-driver/lib:")


def test_every_private_directory_is_writable_and_nothing_else(make_sandbox):
    done = inside(
        make_sandbox(),
        'for d in "$HOME" "$TMPDIR" "$XDG_CACHE_HOME" "$TRITON_CACHE_DIR" /tmp; do '
        "touch $d/x || echo bad $d; done; "
        "for d in /usr /opt /nix/store; do touch $d/x 2>/dev/null && echo bad $d; done; exit 0",
    )
    assert "bad" not in done.stdout


def test_the_image_stays_as_it_is(make_sandbox, rootfs):
    before = sorted(p.name for p in (rootfs / "etc").iterdir())
    inside(make_sandbox(), "echo evil > /etc/evil; rm -f /usr/bin/python3")
    assert (
        sorted(p.name for p in (rootfs / "etc").iterdir()) == before and (rootfs / "usr/bin/python3").exists()
    )


def test_builds_have_no_network_and_servers_have(make_sandbox):
    # The loopback device alone, against what this process sees.
    script = "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"
    assert inside(make_sandbox(), script).stdout.split() == ["lo"]
    here = [x.split(":")[0].strip() for x in Path("/proc/net/dev").read_text().splitlines()[2:]]
    assert inside(make_sandbox(network=True), script).stdout.split() == here


def test_the_user_has_a_name(make_sandbox):
    assert inside(make_sandbox(), "id -un").stdout.strip() == "enginix"


def test_links_of_a_model_directory_are_followed(make_sandbox, tmp_path):
    blobs, model = tmp_path / "blobs", tmp_path / "model"
    blobs.mkdir()
    model.mkdir()
    (blobs / "a").write_text("weights")
    (model / "model.safetensors").symlink_to(blobs / "a")
    (model / "dangling").symlink_to(blobs / "none")
    done = inside(make_sandbox(*make_read_binds([model])), f"cat {model}/model.safetensors; ls {blobs}")
    assert done.stdout.startswith("weights") and "none" not in done.stdout
    assert "Read-only" in inside(make_sandbox(*make_read_binds([model])), f"touch {model}/x").stderr


@pytest.mark.parametrize("at", ["/opt/models/tiny", "/var/lib/models/tiny", "/usr/models", "/models"])
def test_a_model_where_the_image_has_directories_of_its_own(make_sandbox, rootfs, tmp_path, at):
    model, top = tmp_path / "model", Path("/", Path(at).parts[1])
    model.mkdir()
    (model / "weights").write_text("x\n")
    own = rootfs / top.name
    done = inside(
        make_sandbox(Bind(model, at=Path(at))),
        f"cat {at}/weights; ls -A {top}; "
        f"for d in {top} {at}; do touch $d/new 2>/dev/null && echo written; done; command -v sh",
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.split()
    assert said[0] == "x" and "written" not in said
    assert {p.name for p in own.iterdir()} <= set(said) if own.is_dir() else True


def test_a_writable_bind(make_sandbox, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    inside(make_sandbox(Bind(out, writable=True)), f"echo made > {out}/file")
    assert (out / "file").read_text() == "made\n"


def test_the_driver_is_at_one_place(make_sandbox, tmp_path):
    root, package = tmp_path / "driver", tmp_path / "package"
    (root / "lib").mkdir(parents=True)
    package.mkdir()
    (package / "libcuda.so.1").write_text("driver")
    (root / "lib" / "libcuda.so.1").symlink_to(package / "libcuda.so.1")
    assert find_store_closure(root) == [package / "libcuda.so.1"]
    assert (
        inside(make_sandbox(driver=find_driver(root)), "cat /run/opengl-driver/lib/libcuda.so.1").stdout
        == "driver"
    )
    loose = Driver(None, (package / "libcuda.so.1",))
    assert inside(make_sandbox(driver=loose), "cat /run/opengl-driver/lib/libcuda.so.1").stdout == "driver"


def test_no_bubblewrap(make_sandbox, monkeypatch):
    made = make_sandbox()
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("ENGINIX_BWRAP", raising=False)
    with pytest.raises(MachineError, match="bubblewrap is not installed"):
        made.command(["true"])


def test_a_long_work_directory_is_refused_outside_an_image(tmp_path):
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    with pytest.raises(MachineError, match="longer than"):
        Sandbox(table.find_runtime("trtllm-1.2.1"), None, deep).prepare()


def test_an_unwritable_work_directory_is_refused(make_sandbox, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "home").write_text("a file where HOME should be")
    with pytest.raises(MachineError, match="HOME cannot be written"):
        make_sandbox()


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


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def heard() -> None:
    """A signal ignored at start stays ignored, and nohup and a shell's `&` have some ignored."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def start(rootfs: Path, script: str) -> subprocess.Popen[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PYTHON)}
    line = command_line("sh", "-c", script, rootfs=rootfs)
    return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True, preexec_fn=heard)


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_reach_the_command(rootfs, number):
    name = number.name.removeprefix("SIG")
    with start(rootfs, f'trap "echo got; exit 5" {name}; echo up; while :; do sleep 0.05; done') as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.stdout.read() == "got\n"
        assert process.wait(300) == 5


def test_a_killed_wrapper_takes_everything_along(rootfs):
    with start(rootfs, "setsid sleep 543 & echo up; sleep 543") as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        below = list_descendants(process.pid)
        assert below
        process.kill()
        process.wait(300)
        deadline = time.monotonic() + 300
        while any(read_start_time(p) == t for p, t in below.items()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(read_start_time(p) == t for p, t in below.items())


def test_the_end_of_the_command_ends_what_it_left_behind(make_sandbox):
    # It ends when it is told to, not after a time: until then all that it started is there to be seen.
    place = make_sandbox()
    os.mkfifo(place.work / "go")
    script = "setsid sleep 544 & echo up; read word </w/go; exit 4"
    with Child(place, ["sh", "-c", script], capture=True) as child:
        assert child.process.stdout is not None and child.process.stdout.readline() == b"up\n"
        below = list_descendants(child.process.pid)
        (place.work / "go").write_text("go\n")
        assert child.process.wait(300) == 4
    assert below and not any(read_start_time(p) == t for p, t in below.items())


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


# What systemd does for a unit with these settings, by util-linux: each in a mount namespace of its own.
UNIT = {
    "nothing more": "",
    "PrivateTmp=": "mount -t tmpfs tmpfs /tmp",
    "PrivateDevices=": (
        "mount -t tmpfs -o mode=755,nosuid,noexec tmpfs /mnt; "
        "for d in null zero full random urandom tty; do touch /mnt/$d; mount --bind /dev/$d /mnt/$d; done; "
        "mkdir /mnt/shm /mnt/pts; mount --bind /dev/shm /mnt/shm; ln -s /proc/self/fd /mnt/fd; "
        "mount --move /mnt /dev"
    ),
    "ProtectSystem=strict": (
        "for d in /usr /etc /opt /var; do mount --rbind $d $d; mount -o remount,ro,bind $d; done"
    ),
    "ProtectHome=": "mount -t tmpfs -o mode=700 tmpfs /root; mount -t tmpfs -o mode=755 tmpfs /home",
    "ProtectControlGroups=": "mount --rbind /sys /sys; mount -o remount,ro,bind /sys",
}


# PrivateUsers=: a user namespace in which there are root and the unit's user alone; runs a command in it.
PRIVATE_USERS = """
import ctypes, os, sys
made, told = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    assert ctypes.CDLL(None).unshare(0x10000000) == 0
    os.write(made[1], b"x")
    os.read(told[0], 1)
    os.execvp(sys.argv[1], sys.argv[1:])
os.read(made[0], 1)
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{pid}/{name}", "w") as f:
        f.write("0 0 1\\n65534 65534 1\\n")
os.write(told[1], b"x")
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.fixture(scope="module")
def unit_home():
    """A small image, the package with its bytecode, a directory for temporary files of the unit's user."""
    busybox = shutil.which("busybox")
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root to become another user")
    if not (busybox and shutil.which("bwrap")):
        pytest.skip("bubblewrap and busybox are not installed")
    if not Path("/srv").is_dir():
        pytest.skip("no /srv")
    # /srv and not /tmp: a unit's private /tmp hides it, and /var/tmp is as good as /tmp.
    with tempfile.TemporaryDirectory(prefix="enginix-unit-", dir="/srv") as name:
        home = Path(name)
        for made in ("root/bin", "root/etc", "tmp", "package"):
            (home / made).mkdir(parents=True)
        shutil.copy(busybox, home / "root/bin/busybox")
        (home / "root/bin/sh").symlink_to("busybox")
        shutil.copytree(PYTHON / "enginix", home / "package/enginix")
        subprocess.run(["chmod", "-R", "a+rX", str(home)], check=True)
        (home / "tmp").chmod(0o777)
        yield home


@pytest.fixture
def unit(unit_home):
    """Runs a command of a small image as a unit's user: no new privileges, no capabilities, an empty
    environment."""

    def run(before: str, script: str, *around: str) -> subprocess.CompletedProcess[str]:
        words = [*around, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
        words += ["--inh-caps=-all", "--bounding-set=-all", "env", "-i", "PATH=/usr/bin:/bin"]
        words += [f"TMPDIR={unit_home}/tmp", f"PYTHONPATH={unit_home}/package", "PYTHONDONTWRITEBYTECODE=1"]
        words += [os.path.realpath(sys.executable), "-m", "enginix", "runtime", "run", "trtllm-1.2.1"]
        words += ["--rootfs", f"{unit_home}/root", "--", "/bin/sh", "-c", script]
        line = f'set -e; {before or ":"}; exec "$@"'
        return subprocess.run(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", line, "sh", *words],
            capture_output=True,
            text=True,
            check=False,
        )

    yield run
    assert not list((unit_home / "tmp").iterdir())


@pytest.mark.parametrize("settings_", [*UNIT, "all of them"])
def test_as_a_unit(unit, settings_):
    before = "; ".join(filter(None, UNIT.values())) if settings_ == "all of them" else UNIT[settings_]
    done = unit(before, "busybox id -un; busybox touch /tmp/x; test -c /dev/null; exit 9")
    assert (done.returncode, done.stdout) == (9, "enginix\n"), done.stderr


def test_as_a_unit_with_private_users(unit):
    done = unit("", "busybox id -un; exit 9", os.path.realpath(sys.executable), "-c", PRIVATE_USERS)
    assert (done.returncode, done.stdout) == (9, "enginix\n"), done.stderr


def test_as_a_unit_in_a_control_group_of_its_own(unit):
    """Delegated or not, what runs inside stays in the unit's control group, so that it ends with it."""
    done = unit("", "busybox cat /proc/self/cgroup")
    assert done.returncode == 0 and done.stdout == Path("/proc/self/cgroup").read_text(), done.stderr


# Takes every other /proc out of the unit's sight: that of a chroot or a container is one that nothing covers.
ONE_PROC = (
    "sed -n 's/^[^ ]* \\([^ ]*\\) proc .*/\\1/p' /proc/mounts | while read -r at; do "
    """[ "$at" = /proc ] || umount -l "$(printf '%b' "$at")"; done"""
)


@pytest.mark.parametrize("second", [False, True], ids=["one-proc", "two"])
@pytest.mark.parametrize("covered", ["/proc/sys", "/proc/meminfo"])
def test_as_a_unit_that_covers_parts_of_proc(unit, covered, second):
    """ProtectKernelTunables= and Docker do; the kernel then mounts no other /proc."""
    another = "mount -t tmpfs tmpfs /mnt; mkdir '/mnt/a b'; mount -t proc proc '/mnt/a b'; " if second else ""
    cover = f"mount --bind {covered} {covered}; mount -o remount,ro,bind {covered}"
    done = unit(f"{another}{ONE_PROC}; {cover}", "true")
    assert done.returncode == 5 and "parts of it are covered" in done.stderr
    assert "ProtectKernelTunables=no" in done.stderr and "systempaths=unconfined" in done.stderr


def restrict_namespaces() -> None:
    """systemd's RestrictNamespaces=yes by the same means: a seccomp filter under which clone and unshare
    make no user namespace (EPERM), and clone3, whose flags no filter sees, does not exist (ENOSYS)."""
    allow, denied, absent = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    load, equal, any_bit, end = 0x20, 0x15, 0x45, 0x06
    program = [
        (load, 0, 0, 0),  # system call number, x86-64
        (equal, 5, 0, 435),  # clone3
        (equal, 1, 0, 56),  # clone
        (equal, 0, 2, 272),  # unshare
        (load, 0, 0, 16),  # first argument: the flags
        (any_bit, 2, 0, 0x10000000),  # CLONE_NEWUSER
        (end, 0, 0, allow),
        (end, 0, 0, absent),
        (end, 0, 0, denied),
    ]
    packed = b"".join(struct.pack("HBBI", *row) for row in program)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    assert libc.prctl(22, 2, ctypes.create_string_buffer(header, len(header)), 0, 0) == 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="system call numbers of x86-64")
def test_under_the_filter_of_restrict_namespaces(rootfs):
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PYTHON)}
    line = command_line("true", rootfs=rootfs)
    if subprocess.run(line, env=env, check=False, capture_output=True).returncode != 0:
        pytest.skip("no user namespaces here to restrict")
    done = subprocess.run(
        line, env=env, capture_output=True, text=True, check=False, preexec_fn=restrict_namespaces
    )
    assert done.returncode == 5 and "user namespaces are not allowed here" in done.stderr
    assert "no RestrictNamespaces=" in done.stderr


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
