"""A part of the package in Nix has what its entry imports: folders decide what a derivation sees."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "enginix"
# Part → the lists of folders in Nix that make it, and the modules that a build starts.
PARTS = {
    "core": (["enginix.nix:core"], "cli.conversion"),
    "answers": (["answers-package.nix:folders"], "cli.answers"),
    "quantize": (["quantize-package.nix:folders"], "cli.quantization"),
    "ready": (["ready-package.nix:folders"], "cli.serving.ready rollout.ready"),
    "gateway": (["gateway-package.nix:folders"], "cli.gateway gateway"),
    "comparison": (["mk-comparison.nix:folders"], "cli.comparison"),
    "edgellm": (["kinds/edgellm/package.nix:folders"], "cli.edgellm"),
    "rtx": (["kinds/rtx/package.nix:folders"], "cli.rtx"),
    "driver": (["runtime/package.nix:driver"], "kinds.tensorrt.build.build_main"),
    "command": (["runtime/package.nix:driver", "runtime/package.nix:command"], "cli.engines.check"),
    "asks of a model": (
        ["kinds/shared/asker-package.nix:common", "kinds/shared/asker-package.nix:folders#0"],
        "kinds.asking.asker_main evaluation.reference_answers.question_builder",
    ),
    "asks in TensorRT-LLM": (
        ["kinds/shared/asker-package.nix:common", "kinds/shared/asker-package.nix:folders#1"],
        "kinds.trtllm.trtllm_asker",
    ),
    "asks in Edge-LLM": (
        ["kinds/shared/asker-package.nix:common", "kinds/shared/asker-package.nix:folders#2"],
        "kinds.edgellm.edgellm_asker",
    ),
}
# An entry's branch for another part.
OTHER_PARTS = {
    "kinds/edgellm/edgellm_asker.py",
    "kinds/planning/checkpoint_refusal.py",  # for a conversion with --kind, which builds in Nix do not pass
    "kinds/trtllm/trtllm_asker.py",
}


def list_folders(where: str) -> list[str]:
    """Return a list of folders of a Nix file: ``FILE:NAME``, or ``FILE:NAME#N`` for the N-th of that name."""
    file, name, number = re.fullmatch(r"([^:]+):(\w+)(?:#(\d))?", where).groups()  # type: ignore[union-attr]
    lists = re.findall(rf"\b{name} = (?:\w+ \+\+ )?\[([^\]]*)\]", (ROOT / "nix" / file).read_text())
    return re.findall(r'"([^"]+)"', lists[int(number or 0)])


def find_module(name: str) -> Path | None:
    base = PACKAGE.joinpath(*name.split(".")[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


@cache
def list_imports(path: Path, *, with_late: bool) -> tuple[Path, ...]:
    """Return the modules of the package that a module imports, at its top or anywhere."""
    tree = ast.parse(path.read_text())
    modules: list[Path] = []
    for node in ast.walk(tree) if with_late else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "enginix":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "enginix"]
        else:
            continue
        for name in names:
            modules.append(find_module(name) or find_module(name.rpartition(".")[0]) or PACKAGE / "missing")
    return tuple(modules)


@cache
def list_tables(path: Path) -> tuple[str, ...]:
    """Return the names of the tables that a module reads."""
    return tuple(re.findall(r'load_table\("(\w+)"\)', path.read_text()))


@cache
def find_table_folder(table: str) -> str:
    return next(PACKAGE.glob(f"data/*/{table}.json")).parent.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("part", PARTS)
def test_every_import_is_in_the_part(part: str) -> None:
    lists, entries = PARTS[part]
    folders = [folder for where in lists for folder in list_folders(where)]
    assert folders and all((PACKAGE / folder).is_dir() for folder in folders)
    has_descriptions = "kinds/registry" in folders

    def is_inside(path: Path) -> bool:
        relative = path.relative_to(PACKAGE).as_posix()
        if path.parent == PACKAGE or any(relative.startswith(f"{folder}/") for folder in folders):
            return True
        if path.name == "__init__.py" or path.parent == PACKAGE / "cli":
            parent = f"{Path(relative).parent.as_posix()}/"
            return any(folder.startswith(parent) for folder in folders)
        return has_descriptions and re.fullmatch(r"kinds/\w+/kind\.py", relative) is not None

    starts: list[Path] = []
    for entry in entries.split():
        base = PACKAGE.joinpath(*entry.split("."))
        starts += sorted(base.glob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
    if has_descriptions:
        # The registry imports them by name.
        starts += sorted(PACKAGE.glob("kinds/*/kind.py"))
    assert starts
    seen: set[Path] = set()
    pending = [(start, True) for start in starts]
    outside = set()
    while pending:
        path, is_entry = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        for imported in list_imports(path, with_late=is_entry):
            relative = imported.relative_to(PACKAGE).as_posix()
            if not is_inside(imported):
                if not (is_entry and relative in OTHER_PARTS):
                    outside.add(f"{path.relative_to(PACKAGE)} imports {relative}")
            else:
                pending.append((imported, False))
    assert outside == set()
    if part == "core":
        # Other parts have modules whose functions read tables for other callers.
        tables = {table for path in seen for table in list_tables(path)}
        assert tables and {find_table_folder(table) for table in tables} <= set(folders)
