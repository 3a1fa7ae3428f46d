"""Signs an artefact's manifest with an SSH key, as git signs commits (ssh-keygen -Y sign).

  enginix sign ./engine --key ~/.ssh/id_ed25519
  enginix sign /nix/store/…-engine --key ~/.ssh/id_ed25519 -o ./signatures

The artefact and its inputs are checked first, as enginix verify --full does. The signature is written to
enginix.json.sig, and the manifest as an in-toto statement (SLSA provenance) to enginix.intoto.json; the
statement is not signed itself, but compared with the manifest. KEY can be a public key whose private key is
in the SSH agent. Signatures of other keys stay: verify takes any of an allowed signer.

Verify with `enginix verify DIR --signers FILE`.
"""

from __future__ import annotations

import argparse

from enginix import console
from enginix.cli.option_shapes import add_flag, add_output, add_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "artefact", "DIR", "artefact to sign")
    add_path(parser, "--key", "KEY", "SSH key to sign with", required=True)
    add_output(parser, "DIR", "directory for the files (default: beside the manifest)")
    add_flag(parser, "--force", "replace the signatures that are there")


def run(args: argparse.Namespace) -> int:
    from enginix.digests import is_in_store
    from enginix.errors import MachineError, UsageError
    from enginix.files import refuse_damage, write_text
    from enginix.manifest import STATEMENT_FILE
    from enginix.trust.chain import verify_chain
    from enginix.trust.signatures import sign_manifest
    from enginix.trust.statement import dump_statement

    out = args.output or args.artefact
    if is_in_store(out):
        raise UsageError("is in a store of Nix, which does not change", where=out, fix="pass -o DIR")
    verify_chain(args.artefact, full=True)
    with refuse_damage(MachineError, out, "choose another -o", what="cannot make"):
        out.mkdir(parents=True, exist_ok=True)
    signature = sign_manifest(args.artefact, args.key, out, force=args.force)
    write_text(out / STATEMENT_FILE, dump_statement(args.artefact))
    console.print_result(
        {"signature": str(signature), "statement": str(out / STATEMENT_FILE)},
        f"{signature}: signed; verify it with `enginix verify {args.artefact} --signers FILE"
        + (f" --signature {signature}`" if out != args.artefact else "`"),
    )
    return 0
