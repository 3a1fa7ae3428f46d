#!/usr/bin/env python3
"""What `nix eval` of one engine and `nix flake check --no-build` cost, and how they grow with locks.

The project's own flake, and flakes of a user with 1 to 1,000 locks, each a model and an engine; all over the
stand-in package set. Thunks and calls do not depend on the machine's load; processor time does. With
--against the project's flake is measured in another checkout as well (`git worktree add DIR COMMIT`).

  tests/bench/evaluation/flake.py [--locks 1000] [--files 20] [--rounds 3] [--against DIR] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from evaluate import ROOT, measured, write_catalogue

ENGINE = "packages.x86_64-linux.tiny-qwen3-engine.drvPath"
FLAKE = """
{
  inputs.enginix.url = "path:%(root)s";
  outputs = { enginix, ... }:
    let
      e = enginix.legacyPackages.x86_64-linux;
      index = builtins.fromJSON (builtins.readFile ./index.json);
      modelOf = file: e.mkHfModel { lock = ./. + "/${file}"; };
      engineOf = _: file: e.mkEngine { kind = "reference"; model = modelOf file; };
    in
    { packages.x86_64-linux = builtins.mapAttrs engineOf index; };
}
"""


def list_commands(flake: Path, attribute: str, overrides: list[str], nix: str) -> dict[str, list[str]]:
    fixed = [*overrides, "--no-write-lock-file"]
    return {
        "one engine": [nix, "eval", "--option", "eval-cache", "false", *fixed, f"path:{flake}#{attribute}"],
        "flake check": [nix, "flake", "check", "--no-build", *fixed, f"path:{flake}"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--locks", type=int, default=1000)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="enginix-bench-") as directory:
        environment = dict(os.environ)

        def add_rows(flake: str, commands: dict[str, list[str]]) -> None:
            for what, words in commands.items():
                rows.append({"flake": flake, "what": what, **measured(words, environment, args.rounds)})

        for name, root in (("own", ROOT), ("own, before", args.against)):
            if root is not None:
                add_rows(name, list_commands(root.resolve(), ENGINE, [], f"{root}/tests/hostpkgs/nix"))
        # Not for the flake itself: Nix 2.8 takes no template of a store that is somewhere else.
        environment["NIX_REMOTE"] = f"local?root={directory}/store"
        environment["NIX_CONFIG"] = "experimental-features = nix-command flakes\nflake-registry =\n"
        for locks in sorted({1, 10, 100, args.locks}):
            flake = write_catalogue(Path(directory) / f"flake-{locks}", locks, args.files)
            (flake / "flake.nix").write_text(FLAKE % {"root": ROOT})
            attribute = f"packages.x86_64-linux.model-{locks // 2:04}.drvPath"
            stand_in = ["--override-input", "enginix/nixpkgs", f"path:{ROOT}/tests/hostpkgs"]
            add_rows(f"{locks} locks", list_commands(flake, attribute, stand_in, "nix"))
    if args.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    sys.stdout.write("flake         what          processor     thunks      calls  allocated\n")
    for r in rows:
        sys.stdout.write(
            f"{r['flake']:<13} {r['what']:<12} {r['seconds']:8.2f} s {r['thunks']:10.0f} {r['calls']:10.0f}  "
            f"{r['allocated'] / 2**20:6.1f} MiB\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
