"""Every Nix example of README.md, CONTRIBUTING.md and docs/ as a file that evaluates it.

Run by tests/nix/cases/docs.sh.

docs.py ROOT OUT: writes OUT/<page>-<line>.nix, and beside them the files that the examples name.
"""

import json
import re
import shutil
import sys
from pathlib import Path

BLOCK = re.compile(r"^( *)```nix\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
# Files that examples name → what stands for them.
FILES = {
    "qwen3-0.6b.lock.json": "nix/catalogue/qwen3-0_6b.lock.json",
    "model.lock.json": "nix/catalogue/qwen3-0_6b.lock.json",
    "qwen3-32b-nvfp4.lock.json": "nix/catalogue/qwen3-0_6b.lock.json",
    "tickets.jsonl": "tests/models/tiny-qwen3.lock.json",
}
# As `enginix runtime pin` writes it; of no image that exists.
PIN = {
    "runtime": "trtllm-1.2.1",
    "image": "26.06",
    "reference": "nvcr.io/nvidia/tritonserver:26.06-trtllm-python-py3",
    "digest": "sha256:" + 64 * "0",
    "system": "x86_64-linux",
    "hash": "sha256-" + 43 * "A" + "=",
}
# As `enginix lock --dataset` writes it; of no dataset that exists.
DATASET = {
    "version": 1,
    "type": "dataset",
    "repo": "acme/tickets",
    "revision": 40 * "0",
    "license": "cc0-1.0",
    "gated": False,
    "files": {"train.jsonl": {"sha256": 64 * "0", "size": 1}},
}
PRELUDE = """
{{ root, nixpkgsLib ? null }}:
let
  all = import ({root} + "/tests/nix/docs.nix") {{ inherit nixpkgsLib; }};
in
all.check (with all.names; {text})
"""


def expression(text: str) -> str:
    """An example is an expression, or what stands inside of an attribute set."""
    code = re.sub(r"#.*", "", text).strip()
    assigns = re.match(r"[a-zA-Z][\w.-]*(\.\"[^\"]*\")? =", code)
    return f"{{\n{text}\n}}" if assigns else f"(\n{text}\n)"


def main(root: Path, out: Path) -> None:
    out.mkdir(parents=True)
    pages = [page for name in ("README.md", "CONTRIBUTING.md") if (page := root / name).exists()]
    for page in [*pages, *sorted((root / "docs").rglob("*.md"))]:
        text = page.read_text("utf-8")
        for found in BLOCK.finditer(text):
            line = text[: found.start()].count("\n") + 1
            body = found[2].replace("…;", "null;").replace('"… ', '"')
            name = "-".join(page.relative_to(root).with_suffix("").parts)
            (out / f"{name.removeprefix('docs-')}-{line}.nix").write_text(
                PRELUDE.format(root="root", text=expression(body)), "utf-8"
            )
    for name, source in FILES.items():
        shutil.copy(root / source, out / name)
    shutil.copytree(root / "templates/fleet/hosts", out / "hosts")
    (out / "secrets").mkdir()
    for name in ("enginix-gateway.age", "enginix.yaml"):
        (out / "secrets" / name).touch()
    (out / "runtime.json").write_text(json.dumps(PIN), "utf-8")
    (out / "tickets.lock.json").write_text(json.dumps(DATASET), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
