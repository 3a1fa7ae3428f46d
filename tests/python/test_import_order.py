"""Imports run one way: between the folders of the package there is no circle.

A folder is one at the top of the package, or one in ``kinds/``: a kind, or a step that serves all kinds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "python" / "enginix"


def name_folder(module: Path) -> str:
    """Return the folder that a module belongs to; a module at the top is its own."""
    parts = module.relative_to(PACKAGE).with_suffix("").parts
    return "/".join(parts[:2]) if parts[0] == "kinds" and len(parts) > 2 else parts[0]


@cache
def find_module(name: str) -> Path | None:
    """Return the file of a module of the package, or of the module that holds an imported name."""
    parts = name.split(".")[1:]
    for length in range(len(parts), 0, -1):
        base = PACKAGE.joinpath(*parts[:length])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


@cache
def parse_package() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def list_statements(node: ast.AST, *, with_types: bool) -> Iterator[ast.AST]:
    """Yield the statements below a node, those in functions too; those for types alone if asked for."""
    for child in ast.iter_child_nodes(node):
        if not with_types and is_for_types(child):
            continue
        # An expression holds no import.
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield child
            yield from list_statements(child, with_types=with_types)


@cache
def read_imports() -> dict[str, dict[str, str]]:
    """Return, for each folder, the folders that it imports, each with a place that does."""
    imports: dict[str, dict[str, str]] = {}
    for path, tree in parse_package().items():
        folder = name_folder(path)
        rows = imports.setdefault(folder, {})
        for node in list_statements(tree, with_types=True):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                module = find_module(name) if name.startswith("enginix.") else None
                if module is not None and name_folder(module) != folder:
                    place = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
                    rows.setdefault(name_folder(module), place)
    return imports


def test_no_circle() -> None:
    imports = read_imports()
    assert len(imports) > 30
    # Folders that import none of the rest go one after the other; what cannot go is in a circle.
    left = {folder: set(rows) for folder, rows in imports.items()}
    while free := [folder for folder, needs in left.items() if not needs & left.keys()]:
        for folder in free:
            del left[folder]
    places = [f"{a} imports {b} at {imports[a][b]}" for a, needs in left.items() for b in needs & left.keys()]
    assert not left, "\n".join(sorted(places))


def test_the_steps_below_import_no_kind() -> None:
    imports = read_imports()
    below = (
        "evaluation",
        "memory_plan",
        "model",
        "checkpoint",
        "hub",
        "runtime",
        "machine",
        "triton",
        "manifest",
    )
    for folder in below:
        kinds = {other: place for other, place in imports[folder].items() if other.startswith("kinds")}
        assert not kinds, f"{folder}: {kinds}"


def test_a_kind_is_imported_by_its_description_alone() -> None:
    """The registry names no kind's module: a part of the package holds the kinds that it needs."""
    rows = read_imports()["kinds/registry"]
    assert not [other for other in rows if other.startswith("kinds")]


def test_no_two_modules_import_each_other() -> None:
    """An import within a function hides a circle: the two modules are one, or share a third."""
    imports: dict[Path, set[Path]] = {}
    for path, tree in parse_package().items():
        needed = imports.setdefault(path, set())
        for node in list_statements(tree, with_types=False):
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.level == 0 and node.module and node.module.startswith("enginix"):
                for alias in node.names:
                    module = find_module(f"{node.module}.{alias.name}")
                    needed |= {module} - {path, None}
    circles = [f"{a} and {b}" for a, needed in imports.items() for b in needed if a in imports[b]]
    assert not circles, "\n".join(circles)
