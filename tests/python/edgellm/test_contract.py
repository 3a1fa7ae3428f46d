"""data/edgellm/edgellm.json against the wheel itself: its parsers, its payloads, its registry of models."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from enginix.kinds.edgellm import options
from enginix.tables import load_table

from .conftest import environment

# What argparse knows of each program; asked of the wheel's own parsers.
ASK = """
import argparse, json, sys
import tensorrt_edgellm
from pathlib import Path
root = Path(tensorrt_edgellm.__file__).parent
found = {}

def describe(parser):
    return {
        word: {"choices": list(a.choices) if a.choices else None, "flag": a.nargs == 0,
               "default": a.default if isinstance(a.default, (int, str)) else None}
        for a in parser._actions for word in a.option_strings
    }

class Caught(Exception):
    pass

def catch(self, *args, **kwargs):
    found["export"] = describe(self)
    raise Caught

from experimental.builder import cli
from experimental.server import config
from experimental.builder.models import registry
found["build"] = describe(cli._parser())
found["serve"] = describe(config.create_argument_parser())
found["variants"] = json.loads((root / "_native/variants.json").read_text())
found["types"] = sorted(v for f in registry.FAMILIES for v in f.variants)
from tensorrt_edgellm.scripts import export
argparse.ArgumentParser.parse_args = catch
try:
    export.main()
except Caught:
    pass
print(json.dumps(found, default=str))
"""


@pytest.fixture(scope="session")
def wheel(edge: Path) -> Any:
    done = subprocess.run([edge, "-c", ASK], env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["export", "build", "serve"])
def test_every_option_is_one_of_the_real_program(stage: str, wheel: Any) -> None:
    for name, row in load_table("edgellm")[stage].items():
        real = wheel[stage].get(row["flag"])
        assert real is not None, f"{name}: {row['flag']}"
        assert real["flag"] == (row["type"] == "bool"), name
        if row.get("choices"):
            assert real["choices"] == row["choices"], name


@pytest.mark.slow
def test_limits_default_to_what_the_server_asks_for(wheel: Any) -> None:
    """The server builds again where its limits are not the engine's; both are always written out."""
    for name, row in load_table("edgellm")["build"].items():
        assert row["default"] == wheel["serve"][row["flag"]]["default"], name


@pytest.mark.slow
def test_payloads_are_the_wheels(wheel: Any) -> None:
    real = {
        v["variant_id"]: (
            v["gpu_sm"],
            v["platform_family"],
            v["platform_release"],
            v["tensorrt_runtime_soname"],
            v["cuda_runtime_soname"],
        )
        for v in wheel["variants"]["variants"]
    }
    ours = {
        p["id"]: (p["sm"], p["distribution"], p["release"], p["nvinfer"], p["cudart"])
        for p in load_table("edgellm")["payloads"]
        if p["system"] == "x86_64-linux"
    }
    assert ours == real
    assert wheel["variants"]["package_version"] == load_table("edgellm")["version"]


@pytest.mark.slow
def test_architectures_are_in_the_builders_registry(wheel: Any) -> None:
    for name, row in load_table("edgellm")["architectures"].items():
        assert row["modelType"] in wheel["types"], name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "given", "module", "before"),
    [
        ("build", {"maxInputLen": 7, "maxBatchSize": 3, "maxKvCacheCapacity": 9},
         "builder", ["--model-dir", "m", "--engine-dir", "e"]),
        ("serve", {n: r.get("choices", [{"bool": True, "int": 3, "str": "x"}[r["type"]]])[-1]
                   for n, r in load_table("edgellm")["serve"].items()}, "server", ["m"]),
    ],
)  # fmt: skip
def test_the_real_parser_reads_what_we_write(
    stage: str, given: dict[str, Any], module: str, before: list[str], edge: Path
) -> None:
    parser = {
        "builder": "builder.cli import _parser as p",
        "server": "server.config import create_argument_parser as p",
    }
    script = (
        f"import sys, json; from experimental.{parser[module]};"
        "print(json.dumps(vars(p().parse_args(sys.argv[1:]))))"
    )
    words = [edge, "-c", script, *before, *options.format_stage_flags(stage, given)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    parsed = json.loads(done.stdout.splitlines()[-1])
    rows = load_table("edgellm")[stage]
    for name, value in given.items():
        assert parsed[rows[name]["flag"].lstrip("-").replace("-", "_")] == value, name


def test_runtimes_row_agrees_with_the_table() -> None:
    row = load_table("runtimes")["runtimes"][f"edgellm-{load_table('edgellm')['version']}"]
    assert row["kinds"] == ["edgellm"] and row["edgellm"] == load_table("edgellm")["version"]
    assert {p["tensorrt"] for p in load_table("edgellm")["payloads"]} <= set(row["tensorrts"].values())
