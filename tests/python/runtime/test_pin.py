"""Pins: the hash is Nix's own, and a registry that fails or lies leaves no pin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginix.errors import HubError, MachineError, UsageError
from enginix.registry.pin import compute_nar_hash, pin_image
from enginix.runtime import table
from enginix.runtime.sandbox import Sandbox

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda n: n not in (".", "..") and len(n.encode()) < 200
)
NODE = st.recursive(
    st.tuples(st.just("file"), st.binary(max_size=40), st.booleans()) | st.tuples(st.just("link"), NAMES),
    lambda inner: st.tuples(st.just("dir"), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=8,
)


def make(path: Path, node) -> None:
    if node[0] == "file":
        path.write_bytes(node[1])
        path.chmod(0o755 if node[2] else 0o644)
    elif node[0] == "link":
        path.symlink_to(node[1])
    else:
        path.mkdir()
        for name, inner in node[1].items():
            make(path / name, inner)


@pytest.mark.skipif(shutil.which("nix-hash") is None, reason="Nix is not installed")
# An example is several trees: Nix starts twice for all of them.
@settings(max_examples=3, deadline=None)
@given(nodes=st.lists(NODE, min_size=8, max_size=16))
def test_hash_is_what_nix_computes(nodes, tmp_path_factory):
    directory = tmp_path_factory.mktemp("nar")
    paths = [directory / str(number) for number in range(len(nodes))]
    for path, node in zip(paths, nodes, strict=True):
        make(path, node)
    told = subprocess.run(
        ["nix-hash", "--type", "sha256", "--base32", *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    sri = subprocess.run(
        ["nix-hash", "--to-sri", "--type", "sha256", *told.stdout.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    if sri.returncode != 0:
        config = {**os.environ, "NIX_CONFIG": "experimental-features = nix-command"}
        words = ["nix", "hash", "to-sri", "--type", "sha256", *told.stdout.split()]
        sri = subprocess.run(words, capture_output=True, text=True, check=True, env=config)
    assert [compute_nar_hash(path) for path in paths] == sri.stdout.split()


def test_a_pipe_cannot_be_pinned(tmp_path):
    (tmp_path / "tree").mkdir()
    os.mkfifo(tmp_path / "tree" / "pipe")
    with pytest.raises(MachineError, match="cannot be in the Nix store"):
        compute_nar_hash(tmp_path / "tree")


@pytest.fixture
def crane(tmp_path, monkeypatch):
    """A stand-in for crane: `answers(digest, export)` are lines of shell."""

    def answers(
        digest: str = f"echo sha256:{'a' * 64}",
        export: str = "tar -cf - -C $IMAGE .",
        config: str = """echo '{"config": {"Env": ["PATH=/bin", "A=b=c"]}}'""",
    ) -> Path:
        directory, image = tmp_path / "bin", tmp_path / "image"
        directory.mkdir(exist_ok=True)
        (image / "usr").mkdir(parents=True, exist_ok=True)
        (image / "usr" / "file").write_text("content")
        program = directory / "crane"
        program.write_text(
            f"#!/bin/sh\nIMAGE={image}\n"
            f"case $1 in digest) {digest};; export) {export};; config) {config};; esac\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        return image

    return answers


def test_pin(crane, tmp_path):
    image = crane()
    made = pin_image("trtllm-1.2.1", None, "x86_64-linux", keep=tmp_path / "kept")
    assert (
        made["hash"] == compute_nar_hash(image) == compute_nar_hash(tmp_path / "kept")
        and made["digest"] == f"sha256:{'a' * 64}"
    )
    assert made["reference"] == "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
    assert made["environment"] == {"PATH": "/bin", "A": "b=c"}


@pytest.mark.parametrize(
    ("image", "asked"),
    [
        ("localhost:5000/a/b:1.4.0rc2", "localhost:5000/a/b"),
        ("localhost:5000/a/b@sha256:" + "b" * 64, "localhost:5000/a/b"),
        ("a.b/c:mine@sha256:" + "b" * 64, "a.b/c"),
    ],
)
def test_a_described_runtime_is_pinned(crane, tmp_path, image, asked):
    """By its description's file; the pin is for its id, which mkRuntime compares."""
    content = crane(export=f'case $4 in {asked}@*) ;; *) exit 9;; esac; tar -cf - -C "$IMAGE" .')
    description = tmp_path / "description.json"
    versions = {"tensorrtLlm": "1.4.0rc2"}
    description.write_text(json.dumps({"like": "trtllm-1.4.0rc1", "image": image, "versions": versions}))
    made = pin_image(str(description), None, "x86_64-linux")
    assert made["runtime"] == "trtllm-1.4.0rc2-unverified" and made["reference"] == image
    assert made["hash"] == compute_nar_hash(content)
    (tmp_path / "pin.json").write_text(json.dumps(made))
    assert table.find_runtime(str(description), "llmapi", tmp_path / "pin.json").environment["A"] == "b=c"


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ({"digest": "echo unauthorized >&2; exit 1"}, HubError, "unauthorized"),
        ({"config": "echo {}"}, HubError, "configuration cannot be read"),
        ({"config": "exit 1"}, HubError, "configuration cannot be read"),
        ({"digest": "echo latest"}, HubError, "for a digest"),
        ({"export": "echo refused >&2; exit 1"}, HubError, "refused"),
        ({"export": "tar -cf - -C $IMAGE . | head -c 1540"}, MachineError, "tar"),
        ({"export": "echo garbage"}, MachineError, "tar"),
        ({"export": "tar -cf - -T /dev/null"}, HubError, "empty"),
        ({"export": "tar -cf - -C $IMAGE .; exit 3"}, HubError, "failed"),
    ],
)  # fmt: skip
def test_a_registry_that_fails_leaves_nothing(crane, tmp_path, answer, error, said):
    crane(**answer)
    with pytest.raises(error, match=said):
        pin_image("trtllm-1.2.1", None, "x86_64-linux", keep=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("enginix-pin")]


def test_without_tar_nothing_is_started(crane, tmp_path, monkeypatch):
    crane(export=f"touch {tmp_path}/started")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(MachineError, match="tar is not installed"):
        pin_image("trtllm-1.2.1", None, "x86_64-linux")
    assert not (tmp_path / "started").exists()


def test_what_cannot_be_pinned(crane):
    crane()
    for words, said in (
        (("trtllm-1.2", None, "x86_64-linux"), "did you mean trtllm-1.2"),
        (("reference", None, "x86_64-linux"), "has no image"),
        (("trtllm-1.2.1", "25.12", "x86_64-linux"), "26.04"),
        (("trtllm-1.2.1", None, "riscv64-linux"), "aarch64-linux"),
    ):
        with pytest.raises(UsageError, match=said):
            pin_image(*words)


def test_the_environment_of_a_pin_reaches_the_runtime(tmp_path):
    made = tmp_path / "pin.json"
    made.write_text('{"runtime": "trtllm-1.2.1", "environment": {"OPAL_PREFIX": "/x", "HOME": "/root"}}')
    found = table.find_runtime("trtllm-1.2.1", pin=made)
    assert found.environment["OPAL_PREFIX"] == "/x" and "TRITON_LIBCUDA_PATH" in found.environment
    sandbox = Sandbox(found, tmp_path, tmp_path)
    # The private directories win.
    assert sandbox.environment()["HOME"] == "/w/home" and sandbox.environment()["OPAL_PREFIX"] == "/x"
    for text in (
        "{",
        "[]",
        '{"runtime": "trtllm-1.1.0"}',
        '{"runtime": "trtllm-1.2.1", "environment": {"A": 1}}',
    ):
        made.write_text(text)
        with pytest.raises(UsageError):
            table.find_runtime("trtllm-1.2.1", pin=made)


def test_a_pin_is_compared_with_what_is_public(crane, capsys):
    crane()
    pin_image("trtllm-1.2.1", "26.06", "x86_64-linux")
    said = capsys.readouterr().err
    assert "hash: a public source has sha256-cAJ5w2" in said and "orbital-straylight" in said
    rows = table.find_runtime("trtllm-1.2.1").row["images"]
    crane(digest=f"echo {rows['26.07']['hashes']['x86_64-linux']['digest']}")
    pin_image("trtllm-1.2.1", "26.07", "x86_64-linux")
    assert "digest: as a public source has it" in capsys.readouterr().err


def test_modes_that_shut_the_reader_out_are_opened_as_the_nix_builder_does(crane, tmp_path):
    image = crane(export="tar -cf - --mode=a-w,u-x -C $IMAGE usr")
    (image / "usr" / "program").write_text("x")
    (image / "usr" / "program").chmod(0o755)
    pin_image("trtllm-1.2.1", "26.05", "x86_64-linux", keep=tmp_path / "kept")
    assert (tmp_path / "kept/usr/program").stat().st_mode & 0o700 == 0o700
