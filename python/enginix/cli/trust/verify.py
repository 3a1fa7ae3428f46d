"""Checks that an artefact, and what it was made from, are what their manifests list.

  enginix verify ./repository                    it, its engine, the engine's checkpoint
  enginix verify ./engine --from ./model         a model that the engine was made from, too
  enginix verify ./engine --signers ./signers    and that an allowed signer signed the engine's manifest

Every file is compared by SHA-256: changed, added and missing ones are named. Weights whose size, inode and
times are those of an earlier check are not read again; --full reads them. An artefact in a store of Nix is
covered by the store's hash and is not read, unless --full or --signers is given: with a signature, neither
the store nor the cache that filled it has to be trusted.

SIGNERS is what ssh-keygen calls ALLOWED SIGNERS, as git has in gpg.ssh.allowedSignersFile. Exit status 3:
something changed, is not signed, or has no digests because an earlier enginix made it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from enginix import console
from enginix.cli.option_shapes import add_flag, add_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "artefact", "DIR", "model, checkpoint, engine, repository or another artefact")
    parser.add_argument(
        "--from",
        dest="sources",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="input that it was made from, to check, too",
    )
    add_flag(parser, "--full", "read all weights again")
    add_path(parser, "--signers", "FILE", "demand a signature of one of these allowed signers")
    add_path(parser, "--signature", "FILE", "the signature (default: DIR/enginix.json.sig)")
    parser.add_argument(
        "--ssh-keygen", default="ssh-keygen", metavar="FILE", help="ssh-keygen (default: the one on PATH)"
    )


def run(args: argparse.Namespace) -> int:
    from enginix.errors import UsageError
    from enginix.manifest import explain_unverified
    from enginix.trust.chain import verify_chain
    from enginix.trust.signatures import require_signature
    from enginix.trust.statement import require_same_statement

    if args.signature is not None and args.signers is None:
        raise UsageError("needs --signers", where="--signature")
    signer = None
    if args.signers is not None:
        signer = require_signature(args.artefact, args.signers, args.signature, ssh_keygen=args.ssh_keygen)
    checked = verify_chain(args.artefact, args.sources, full=args.full, in_store=args.signers is not None)
    require_same_statement(args.artefact, args.signature.parent if args.signature else args.artefact)
    lines = [c.text() for c in checked]
    unverified = {text for c in checked if (text := explain_unverified(c.manifest)) is not None}
    lines += [f"warning: {text}" for text in sorted(unverified)]
    if signer is not None:
        lines.append(f"signed by {signer}")
    console.print_result(
        {
            "artefacts": [
                {
                    "directory": str(c.directory),
                    "artefact": c.manifest.artefact,
                    "name": c.manifest.name,
                    "files": c.checked,
                    "inStore": c.is_stored,
                    "warning": explain_unverified(c.manifest),
                }
                for c in checked
            ],
            "signer": signer,
        },
        "\n".join(lines),
    )
    return 0
