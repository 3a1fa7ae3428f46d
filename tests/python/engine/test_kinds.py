"""The kinds of engines: each has its description, its hooks and its counterpart in Nix, under one name."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enginix.compatibility import check
from enginix.errors import UsageError
from enginix.kinds.gating.gate_asking import GateAsker
from enginix.kinds.planning.plan_record import KindPlanner
from enginix.kinds.registry import KIND_NAMES, find_kind, get_kind, list_kinds, list_triton_kinds
from enginix.kinds.registry.engine_kind import EngineKind
from enginix.kinds.trtllm import trtllm_asker
from enginix.optional_libraries import EXTRAS
from enginix.tables import load_table
from enginix.triton.repository_content import ContentModule

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "python" / "enginix"
MEMBERS = [*EngineKind.__dataclass_fields__, *(name for name in vars(EngineKind) if not name.startswith("_"))]


def test_every_folder_with_a_description_is_in_the_registry() -> None:
    assert {path.parent.name for path in PACKAGE.glob("kinds/*/kind.py")} == set(KIND_NAMES)
    assert [kind.name for kind in list_kinds()] == list(KIND_NAMES) == load_table("engine_kinds")["order"]


@pytest.mark.parametrize("name", KIND_NAMES)
def test_a_kind_satisfies_the_protocol(name: str) -> None:
    kind = find_kind(name)
    assert len(MEMBERS) > 10
    for member in MEMBERS:
        assert hasattr(kind, member), member
    assert kind.summary
    assert "\n" not in kind.summary
    # Either one command, or commands of its own.
    assert (kind.build is None) == bool(kind.build_commands)
    # Something serves it; and what is compiled is for a GPU.
    assert kind.server is not None or kind.triton is not None
    assert not (kind.is_portable and (kind.is_compiled or kind.runs_in_image))
    # A build of its own is among its commands, and its extra is one of this package.
    if kind.own_build is not None:
        assert kind.build_commands[-1].startswith(f"enginix {kind.own_build.command} ")
        assert kind.own_build.extra in EXTRAS
    assert find_kind(kind.converted_as).built_from == "checkpoint"


def require_functions(module: str, protocol: type) -> None:
    """Refuse a module whose functions have other parameters than the protocol's methods."""
    loaded = importlib.import_module(module)
    methods = {n: f for n, f in vars(protocol).items() if inspect.isfunction(f) and not n.startswith("_")}
    assert methods
    for name, method in methods.items():
        parameters = list(inspect.signature(getattr(loaded, name)).parameters)
        assert parameters == list(inspect.signature(method).parameters)[1:], f"{module}.{name}"


@pytest.mark.parametrize("name", KIND_NAMES)
def test_the_hooks_of_a_kind_are_there(name: str) -> None:
    kind = find_kind(name)
    if kind.build is not None:
        assert callable(importlib.import_module(kind.build).run)
    if kind.memory_plan is not None:
        require_functions(kind.memory_plan, KindPlanner)
    if kind.gate_asker is not None:
        require_functions(kind.gate_asker, GateAsker)
    if kind.triton is not None:
        require_functions(kind.triton.repository, ContentModule)


def test_listing_kinds_imports_nothing_heavy() -> None:
    code = (
        "import json, sys; from enginix.kinds.registry import list_kinds; list_kinds(); "
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    assert not {"torch", "numpy", "transformers", "safetensors", "google"} & set(json.loads(done.stdout))


def test_an_unknown_kind_names_the_known() -> None:
    assert get_kind("rtq") is None
    assert get_kind(None) is None
    with pytest.raises(UsageError, match="unknown kind 'rtq'") as error:
        find_kind("rtq")
    assert "tensorrt, llmapi, edgellm, rtx, reference" in str(error.value)


def read_nix_kinds() -> dict[str, dict[str, Any]]:
    """Return the entries of nix/kinds/default.nix whose values are one word: strings, booleans, null."""
    text = (ROOT / "nix" / "kinds" / "default.nix").read_text("utf-8")
    entries = re.findall(r"^  (\w+) = \{\n(.*?)^  \};$", text, re.MULTILINE | re.DOTALL)
    values = {
        name: dict(re.findall(r"^    (\w+) = ([^\[\n]*);$", body, re.MULTILINE)) for name, body in entries
    }
    assert values
    return {
        name: {
            key: json.loads(value) if re.fullmatch(r'true|false|null|".*"', value) else value
            for key, value in row.items()
        }
        for name, row in values.items()
    }


def test_every_kind_has_its_counterpart_in_nix() -> None:
    rows = read_nix_kinds()
    assert set(rows) == set(KIND_NAMES)
    for kind in list_kinds():
        row = rows[kind.name]
        assert row["build"] == f"import ./{kind.name}"
        assert (ROOT / "nix" / "kinds" / kind.name / "default.nix").is_file()
        assert row["server"] == kind.server
        assert row["inImage"] == kind.runs_in_image
        # A list is no word, and so is left out of the row.
        assert ("tritonRepo" in row) == (kind.triton is None)
        assert row["spansMachines"] == (kind.triton is not None and kind.triton.has_rank_processes)


def test_tables_have_the_rows_of_every_kind() -> None:
    assert set(load_table("kinds")["kinds"]) == set(KIND_NAMES)
    gated = {name for name in load_table("gates")["kinds"] if name != "about"}
    assert gated == {k.name for k in list_kinds() if not k.is_portable}
    executed = {kind for row in load_table("runtimes")["runtimes"].values() for kind in row["kinds"]}
    assert executed == set(KIND_NAMES)
    served = set(load_table("llm_args")["serve"]["backends"])
    assert served == {kind.name for kind in list_kinds() if kind.server == "trtllm-serve"}


def test_parts_without_the_registry_agree_with_it() -> None:
    """What builds and asks engines holds no description, as a changed one would build and ask again."""
    kinds = list_kinds()
    assert set(check.PORTABLE_KINDS) == {kind.name for kind in kinds if kind.is_portable}
    assert set(check.COMPILED_KINDS) == {kind.name for kind in kinds if kind.is_compiled}
    every = {*check.PORTABLE_KINDS, *check.COMPILED_KINDS, *check.UNCOMPILED_KINDS}
    assert every == set(KIND_NAMES)
    assert set(trtllm_asker.KINDS) == {kind.name for kind in kinds if kind.runs_in_image}
    assert list_triton_kinds() == ("tensorrt", "llmapi", "rtx", "reference")
