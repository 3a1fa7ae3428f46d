"""Changes an engine or a repository after it was made, and tells which command refuses it.

    python tests/python/trust/tampering.py            prints the table and counts random changes
    python tests/python/trust/tampering.py --write    writes the table into docs/reference/trust.md

Nine kinds are those of an attack on an earlier enginix, which served eight of them. The random changes are of
one byte each, anywhere in an engine or a repository.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    for folder in ("python", "tests"):
        sys.path.insert(0, str(Path(__file__).resolve().parents[3] / folder))

from enginix.cli import main
from enginix.errors import EnginixError
from enginix.kinds.triton_repository.repository import build_triton_repository
from enginix.serve.preflight import check_repository
from enginix.serve.tritonserver import TritonServer

ROOT = Path(__file__).resolve().parents[3]
MODEL = ROOT / "tests" / "models" / "tiny-qwen3"
PAGE = ROOT / "docs" / "reference" / "trust.md"
BEGIN, END = "<!-- tampering: begin -->", "<!-- tampering: end -->"
# The checks of a start come before anything of the installation is used.
SERVER = TritonServer(Path("/nonexistent"), "reference", "2.68.0")
COMMANDS = ("serve", "check", "gate", "triton-repo", "verify")


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False))


def exchange_pieces(content: Any) -> None:
    vocabulary = content["model"]["vocab"]
    pieces = sorted(vocabulary, key=vocabulary.get)
    for first, second in zip(pieces[300:1000:2], pieces[301:1001:2], strict=True):
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def scale_matrix(root: Path, name: str, change: Callable[[Any], object]) -> None:
    from safetensors.torch import load_file, save_file

    path = root / "engine/checkpoint/rank0.safetensors"
    tensors = load_file(path)
    change(tensors[name])
    save_file(tensors, path)


@dataclass(frozen=True)
class Tampering:
    """One kind of change.

    Attributes:
        of: what is changed; a repository's change is none of its engine.
    """

    what: str
    of: str
    change: Callable[[Path], object]


def write_stranger(root: Path) -> None:
    path = root / "repository/ensemble/1/model.py"
    path.write_text("import os\n" + path.read_text())


TAMPERINGS = (
    Tampering(
        "700 pieces of the tokenizer exchanged",
        "engine",
        lambda r: edit_json(r / "engine/tokenizer/tokenizer.json", exchange_pieces),
    ),
    Tampering(
        "another end token",
        "engine",
        lambda r: edit_json(
            r / "engine/tokenizer/generation_config.json", lambda c: c.update(eos_token_id=1999)
        ),
    ),
    Tampering(
        "another chat template",
        "engine",
        lambda r: (r / "engine/tokenizer/chat_template.jinja").write_text("{{ messages | upper }}"),
    ),
    Tampering(
        "a matrix times 1.02",
        "engine",
        lambda r: scale_matrix(r, "transformer.layers.1.mlp.proj.weight", lambda t: t.mul_(1.02)),
    ),
    Tampering(
        "rare rows of the head zeroed",
        "engine",
        lambda r: scale_matrix(r, "lm_head.weight", lambda t: t[1500:2040].zero_()),
    ),
    Tampering(
        "manifest: gates passed",
        "engine",
        lambda r: edit_json(
            r / "engine/enginix.json", lambda c: c["results"].update(gates={"logits": "passed"})
        ),
    ),
    Tampering(
        "manifest of the repository: gates passed",
        "repository",
        lambda r: edit_json(
            r / "repository/enginix.json", lambda c: c["results"].update(gates={"logits": "passed"})
        ),
    ),
    Tampering(
        "golden tokens removed",
        "repository",
        lambda r: edit_json(r / "repository/enginix.json", lambda c: c["results"].pop("golden")),
    ),
    Tampering("code of a stranger in model.py", "repository", write_stranger),
)


@contextlib.contextmanager
def copy_stages(whole: Path) -> Iterator[Path]:
    """A copy of an engine, and a new repository of it."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        shutil.copytree(whole, root / "engine")
        build_triton_repository(root / "engine", root / "repository")
        yield root


def is_refused(command: str, root: Path) -> bool:
    """Return whether a command refuses the stages: by an error, not by a crash."""
    engine, repository = str(root / "engine"), str(root / "repository")
    words = {
        "check": ["check", engine],
        # Without gates: what those notice has its own table.
        "gate": ["gate", engine, "--reference", str(MODEL), "--gates", "{}"],
        "triton-repo": ["triton-repo", engine, "-o", str(root / "again")],
        "verify": ["verify", repository],
    }
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        if command == "serve":
            try:
                check_repository(root / "repository", SERVER)
            except EnginixError:
                return True
            return False
        status = main(words[command])
    shutil.rmtree(root / "again", ignore_errors=True)
    if status not in (0, 1, 2, 3):
        raise AssertionError(f"{command} ended with status {status}")
    return status != 0


def make_table(whole: Path) -> list[tuple[str, str, dict[str, bool]]]:
    """Return each kind with the commands that refuse it."""
    rows = []
    for tampering in (Tampering("nothing", "none", lambda _: None), *TAMPERINGS):
        with copy_stages(whole) as root:
            tampering.change(root)
            rows.append((tampering.what, tampering.of, {c: is_refused(c, root) for c in COMMANDS}))
    return rows


def format_table(rows: list[tuple[str, str, dict[str, bool]]]) -> str:
    lines = ["| changed | in | " + " | ".join(COMMANDS) + " |", "|---|---|" + "---|" * len(COMMANDS)]
    for what, of, refused in rows:
        if of == "none":
            continue
        readers = COMMANDS if of == "engine" else ("serve", "verify")
        cells = ["refused" if refused[c] else "**passes**" if c in readers else "not read" for c in COMMANDS]
        lines.append(f"| {what} | {of} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def change_random_bytes(root: Path, count: int, chance: random.Random) -> list[str]:
    """Change one byte at a time, and return the changes that `serve`'s checks did not refuse."""
    files = sorted(p for d in ("engine", "repository") for p in (root / d).rglob("*") if p.is_file())
    # Half of the changes by file, so that small files are met, half by byte.
    sizes = [p.stat().st_size for p in files]
    missed = []
    for number in range(count):
        path = chance.choice(files) if number % 2 else chance.choices(files, sizes)[0]
        content = path.read_bytes()
        if not content:
            continue
        at, flip = chance.randrange(len(content)), chance.randrange(1, 256)
        status = path.stat()
        with path.open("r+b") as f:
            f.seek(at)
            f.write(bytes([content[at] ^ flip]))
        # As somebody who hides it would.
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        if not is_refused("serve", root):
            missed.append(f"{path.relative_to(root)}: byte {at} ^ {flip}")
        with path.open("r+b") as f:
            f.seek(at)
            f.write(content[at : at + 1])
    assert not is_refused("serve", root)
    return missed


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=17)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        assert main(["convert", str(MODEL), "-o", str(work / "checkpoint"), "--dtype", "float32"]) == 0
        words = ["build", str(work / "checkpoint"), "--kind", "reference", "--model", str(MODEL)]
        assert main([*words, "--no-gates", "-o", str(work / "engine")]) == 0
        rows = make_table(work / "engine")
        table = format_table(rows)
        with copy_stages(work / "engine") as root:
            missed = change_random_bytes(root, args.count, random.Random(args.seed))
    served = [what for what, of, refused in rows if of != "none" and not refused["serve"]]
    summary = f"{args.count} changes of a byte (seed {args.seed}): {args.count - len(missed)} refused"
    print(table, summary, *missed, *served, sep="\n")
    if args.write:
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{table}\n\n{summary}.\n{END}{rest.partition(END)[2]}")
    return 1 if missed or served else 0


if __name__ == "__main__":
    raise SystemExit(run())
