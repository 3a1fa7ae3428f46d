"""Pins of runtime images: the hash of an image's files, computed on a machine that reaches its registry.

crane resolves the tag and exports the file system of one platform as a tar stream. The hash is Nix's hash of
the unpacked tree, which mkRuntime's fixed-output derivation must produce.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from enginix import console, process
from enginix.errors import HubError, MachineError, UsageError
from enginix.process_group import kill_tree
from enginix.runtime import table as runtimes

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def pin_image(name: str, image: str | None, system: str, *, keep: Path | None = None) -> dict[str, Any]:
    """Compute the pin of a runtime's image.

    Args:
        name: a runtime of the table, or the file of a description.
        image: tag of its images; None for its default.
        system: platform in Nix's words.
        keep: directory for the unpacked tree; None discards it.

    Returns:
        mkRuntime's argument ``pin``: runtime, image, reference, digest, system, hash, environment, status.

    Raises:
        UsageError: unknown runtime, image or system.
        MachineError: crane or tar is missing, or the disk is full.
        HubError: the registry failed, or the stream broke off.
    """
    row = runtimes.find_runtime(name).row
    name, image, reference, platform = choose_image(name, image, system)
    crane = require_crane()
    try:
        digest = process.run_program(
            [crane, "digest", "--platform", platform, reference], timeout=300
        ).stdout.strip()
    except MachineError as e:
        raise HubError(
            e.what, where=reference, fix="check the network, and `crane auth login` where it needs one"
        ) from e
    if not _DIGEST.fullmatch(digest):
        raise HubError(f"the registry answered {digest[:80]!r} for a digest", where=reference)
    by_digest = f"{_strip_tag(reference)}@{digest}"
    console.print_message(f"{reference} for {system} is {digest}")
    public = row["images"][image]["hashes"].get(system, {})
    _report_public_value("digest", digest, public)
    environment = _read_image_environment(crane, by_digest, platform)
    with tempfile.TemporaryDirectory(prefix="enginix-pin-", dir=keep.parent if keep else None) as scratch:
        tree = Path(scratch) / "rootfs"
        tree.mkdir()
        unpack_image(crane, by_digest, platform, tree)
        tree_hash = compute_nar_hash(tree)
        _report_public_value("hash", tree_hash, public)
        if keep is not None:
            os.rename(tree, keep)
    return {
        "runtime": name,
        "image": image,
        "reference": reference,
        "digest": digest,
        "system": system,
        "hash": tree_hash,
        "environment": environment,
        "status": "computed by enginix runtime pin",
    }


def choose_image(name: str, image: str | None, system: str) -> tuple[str, str, str, str]:
    """Return the names of a runtime and of its image, the image's reference and its platform.

    Raises:
        UsageError: unknown runtime, image or system.
    """
    runtime = runtimes.find_runtime(name)
    name, row = runtime.id, runtime.row
    images = row.get("images", {})
    if not images:
        raise UsageError(f"runtime {name} has no image")
    image = image or row["defaultImage"]
    if image not in images:
        raise UsageError(
            f"runtime {name} has no image {image!r}", fix=f"use one of {', '.join(sorted(images))}"
        )
    if system not in row["platforms"]:
        raise UsageError(f"no image for {system!r}", fix=f"use one of {', '.join(row['platforms'])}")
    return name, image, images[image]["reference"], row["platforms"][system]


def require_crane() -> str:
    """Return the path of crane.

    Raises:
        MachineError: crane, or tar, which unpacks what it exports, is not installed.
    """
    _require_tar()
    crane = shutil.which("crane")
    if crane is None:
        raise MachineError(
            "crane is not installed", where="crane", fix="nix shell nixpkgs#crane, or install it"
        )
    return crane


def _require_tar() -> str:
    program = shutil.which("tar")
    if program is None:
        raise MachineError("tar is not installed", where="tar", fix="install it (package gnutar, or tar)")
    return program


def _strip_tag(reference: str) -> str:
    """Return a reference without its tag and digest; a registry's port stays."""
    plain = reference.partition("@")[0]
    name, colon, tag = plain.rpartition(":")
    return name if colon and "/" not in tag else plain


def _report_public_value(field: str, computed: str, public: dict[str, Any]) -> None:
    """Print whether a public source has the same value; it may be of another platform or an older tag."""
    published = public.get(field)
    if published is not None:
        how = "as a public source has it" if published == computed else f"a public source has {published}"
        console.print_message(f"{field}: {how} ({public['source']})")


def _read_image_environment(crane: str, reference: str, platform: str) -> dict[str, str]:
    """Return the variables that an image's configuration sets (OCI image specification: config.Env)."""
    try:
        config_text = process.run_program(
            [crane, "config", "--platform", platform, reference], timeout=300
        ).stdout
        variables = json.loads(config_text)["config"].get("Env") or []
        return dict(v.split("=", 1) for v in variables)
    except (MachineError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise HubError(f"the image's configuration cannot be read: {e}", where=reference) from e


def unpack_image(crane: str, reference: str, platform: str, tree: Path) -> None:
    """Run ``crane export REF - | tar -xf - -C tree``, and check both exit statuses."""
    program = _require_tar()
    export = subprocess.Popen(
        [crane, "export", "--platform", platform, reference, "-"],
        env=process.build_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    tar = subprocess.Popen(
        [program, "--no-same-owner", "-xf", "-", "-C", str(tree)],
        env=process.build_environment(),
        stdin=export.stdout,
        stderr=subprocess.PIPE,
    )
    assert export.stdout is not None and export.stderr is not None
    export.stdout.close()
    try:
        complaint = tar.communicate()[1].decode("utf-8", "replace").strip()
        reason = export.stderr.read().decode("utf-8", "replace").strip()
    except BaseException:
        # As by a signal: crane, which waits for the network, would run on.
        for child in (export, tar):
            kill_tree(child.pid)
            child.wait()
        raise
    export.stderr.close()
    if export.wait() != 0:
        raise HubError(f"crane export: {(reason.splitlines() or ['failed'])[-1]}", where=reference)
    if tar.returncode != 0:
        raise MachineError(f"tar: {(complaint.splitlines() or ['failed'])[-1]}", where=tree)
    # As mkRuntime's builder does: an image's own modes may forbid reading, and are part of the hash.
    process.run_program(["chmod", "-R", "u+rwX", tree])
    if not any(tree.iterdir()):
        raise HubError("the exported image is empty", where=reference)


def compute_nar_hash(tree: Path) -> str:
    """Compute Nix's recursive SHA-256 of a tree (its NAR serialization), as ``sha256-…``.

    Source: Nix manual, "Nix Archive (NAR) format".
    """
    digest = hashlib.sha256()

    def text(value: bytes) -> None:
        digest.update(len(value).to_bytes(8, "little") + value + b"\0" * (-len(value) % 8))

    def node(path: bytes) -> None:
        text(b"(")
        text(b"type")
        if os.path.islink(path):
            text(b"symlink")
            text(b"target")
            text(os.readlink(path))
        elif os.path.isdir(path):
            text(b"directory")
            for name in sorted(os.listdir(path)):
                for word in (b"entry", b"(", b"name", name, b"node"):
                    text(word)
                node(os.path.join(path, name))
                text(b")")
        elif os.path.isfile(path):
            text(b"regular")
            status = os.stat(path)
            if status.st_mode & 0o100:
                text(b"executable")
                text(b"")
            text(b"contents")
            digest.update(status.st_size.to_bytes(8, "little"))
            with open(path, "rb") as f:
                while block := f.read(1 << 20):
                    digest.update(block)
            digest.update(b"\0" * (-status.st_size % 8))
        else:
            raise MachineError("a device, socket or pipe cannot be in the Nix store", where=os.fsdecode(path))
        text(b")")

    text(b"nix-archive-1")
    node(os.fsencode(tree))
    return "sha256-" + base64.b64encode(digest.digest()).decode()
