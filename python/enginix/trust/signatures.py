"""Signatures over a manifest with SSH keys, as git signs commits: ``ssh-keygen -Y``.

A manifest has the digests of all files and of its inputs' manifests, so that its signature covers them.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from enginix.errors import ManifestError, UsageError
from enginix.files import refuse_damage, write_text
from enginix.manifest import MANIFEST_FILE, SIGNATURE_FILE, STATEMENT_FILE
from enginix.process import run_program

# What else a key signs (commits, mail) is no signature of an artefact.
NAMESPACE = "enginix"
_LARGEST_SIGNATURE = 1 << 16


# One signature of a file that has several, one after another.
_BLOCK = re.compile(r"-----BEGIN SSH SIGNATURE-----\n.*?-----END SSH SIGNATURE-----\n?", re.DOTALL)
# Verifying takes a process or two a signature.
_MOST_SIGNATURES = 16


def sign_manifest(directory: Path, key: Path, out: Path, *, force: bool = False) -> Path:
    """Sign a manifest, and write the signature into ``out``, behind those of other keys.

    Args:
        key: a private key; or a public one whose private key is in the SSH agent.
        force: replace all signatures that are there.

    Raises:
        UsageError: no such key, one that cannot sign, or a signature of another manifest is there.
        MachineError: ssh-keygen is missing.
    """
    if not key.is_file():
        raise UsageError("no such key", where=key, fix="ssh-keygen -t ed25519 makes one")
    agent = {n: os.environ[n] for n in ("SSH_AUTH_SOCK", "HOME", "SSH_ASKPASS") if n in os.environ}
    words = ["ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f", os.path.abspath(key)]
    done = run_program(words, env=agent, stdin=directory / MANIFEST_FILE, check=False, asks_at_terminal=True)
    if done.returncode != 0 or "BEGIN SSH SIGNATURE" not in done.stdout:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise UsageError(
            f"ssh-keygen cannot sign with it: {lines[-1]}",
            where=key,
            fix="pass a private key, or a public one whose private key is in the agent (ssh-add)",
        )
    signature = out / SIGNATURE_FILE
    for path in (signature, out / STATEMENT_FILE):
        if path.is_dir():
            raise UsageError("is a directory", where=path, fix="remove it, or pass another -o DIR")
    others = [] if force else _list_other_signatures(directory / MANIFEST_FILE, signature, done.stdout)
    write_text(signature, "".join([*others, done.stdout]))
    return signature


def _list_other_signatures(manifest: Path, signature: Path, new: str) -> list[str]:
    """Return the signatures of other keys that are there already.

    Raises:
        UsageError: one is not of this manifest.
    """
    if not signature.exists():
        return []
    keys = {}
    content = signature.read_text("utf-8", "replace")
    for block in (*_BLOCK.findall(content), new):
        with tempfile.NamedTemporaryFile("w", prefix="enginix-sign-", encoding="utf-8") as copy:
            copy.write(block)
            copy.flush()
            words = ["ssh-keygen", "-Y", "check-novalidate", "-n", NAMESPACE, "-s", copy.name]
            done = run_program(words, stdin=manifest, check=False)
            keys[block] = "" if done.returncode else done.stdout.strip()
    if "" in keys.values() or _BLOCK.sub("", content).strip() or len(keys) > _MOST_SIGNATURES:
        raise UsageError(
            "holds a signature that is not of this manifest, or too many",
            where=signature,
            fix="--force replaces what is there, or pass -o DIR",
        )
    return [block for block, key in keys.items() if key != keys[new]]


def require_signature(
    directory: Path, signers: Path, signature: Path | None = None, *, ssh_keygen: str = "ssh-keygen"
) -> str:
    """Return who signed an artefact's manifest: a principal of the file of allowed signers.

    Args:
        signers: ALLOWED SIGNERS of ssh-keygen(1), as git's ``gpg.ssh.allowedSignersFile``.
        signature: default is the file beside the manifest.
        ssh_keygen: the program that verifies.

    Raises:
        ManifestError: no signature, or not one of an allowed signer over this manifest.
        UsageError: no such file of signers.
        MachineError: ssh-keygen is missing.
    """
    if not signers.is_file():
        raise UsageError("no such file of allowed signers", where=signers, fix="lines: NAME KEYTYPE KEY")
    if not _names_signer(signers):
        raise UsageError(
            "names no allowed signer", where=signers, fix="a line for each: NAME KEYTYPE KEY (ssh-keygen(1))"
        )
    path = signature or directory / SIGNATURE_FILE
    with refuse_damage(ManifestError, path, "make it readable", what="cannot be read"):
        if not path.is_file() or path.stat().st_size > _LARGEST_SIGNATURE:
            raise ManifestError(
                "not signed, and a signature of an allowed signer is demanded",
                where=path,
                fix="enginix sign it, or pass its signature with --signature",
            )
        content = (directory / MANIFEST_FILE).read_bytes()
        signed = path.read_bytes()
    with tempfile.TemporaryDirectory(prefix="enginix-verify-") as work:
        # Copies: what is verified is what was read.
        manifest_copy, signature_copy = Path(work) / MANIFEST_FILE, Path(work) / SIGNATURE_FILE
        manifest_copy.write_bytes(content)
        allowed = os.path.abspath(signers)
        for block in _BLOCK.findall(signed.decode("utf-8", "replace"))[:_MOST_SIGNATURES]:
            signature_copy.write_text(block, "utf-8")
            found = run_program(
                [ssh_keygen, "-Y", "find-principals", "-s", signature_copy, "-f", allowed], check=False
            )
            for principal in found.stdout.splitlines() if found.returncode == 0 else ():
                words = [ssh_keygen, "-Y", "verify", "-f", allowed, "-I", principal.strip()]
                words += ["-n", NAMESPACE, "-s", str(signature_copy)]
                if run_program(words, stdin=manifest_copy, check=False).returncode == 0:
                    return principal.strip()
    raise ManifestError(
        "its signature is not one of an allowed signer over this manifest",
        where=path,
        fix=f"ask who signed it; allowed signers are in {signers}",
    )


def _names_signer(signers: Path) -> bool:
    """Tell whether a line has a name before its key; a public key's own file has none."""
    try:
        lines = [line.split() for line in signers.read_text("utf-8").splitlines()]
    except (OSError, ValueError):
        return False
    rows = [words for words in lines if words and not words[0].startswith("#")]
    return any(len(words) > 2 and not words[0].startswith(("ssh-", "ecdsa-", "sk-")) for words in rows)
