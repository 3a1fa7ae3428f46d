"""Errors propose the llmapi kind for classes of TensorRT-LLM's PyTorch backend alone, by one table."""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from enginix.errors import EnginixError, ModelError
from enginix.machine.target import find_target
from enginix.model.llmapi_advice import limited_llmapi_advice
from enginix.model.number_formats import read_algorithms
from enginix.runtime.preflight import check_support
from enginix.tables import load_table
from nix_evaluation import NIX, ROOT, check

PACKAGE = ROOT / "python/enginix"
KNOWN, UNKNOWN = "LlamaForCausalLM", "BloomForCausalLM"


def limit(fix: str, architecture: str | None) -> str:
    with pytest.raises(ModelError) as e, limited_llmapi_advice(architecture):
        raise ModelError("x", fix=fix)
    assert str(e.value).endswith(str(e.value.fix))
    return str(e.value.fix)


def list_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from list_texts(inner)


def list_proposals() -> Iterator[str]:
    """Yield each text of code and tables that proposes the kind."""
    tables = [p for p in (PACKAGE / "data").rglob("*.json") if p.name != "pytorch_backend.json"]
    for path in tables:
        yield from list_texts(json.loads(path.read_text()))
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)) if "llmapi" in source else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_text_that_proposes_it_is_limited() -> None:
    texts = {
        t for t in list_proposals() if "with the llmapi kind" in t and not t.startswith(("Propose", "Limit"))
    }
    assert len(texts) > 8
    for text in texts:
        assert limit(text, KNOWN) == text
        assert "llmapi" not in limit(text, UNKNOWN), text


def test_a_quantized_model_is_never_sent_to_transformers() -> None:
    for text, instead in load_table("pytorch_backend")["proposals"]:
        assert limit(text, UNKNOWN) == instead
        assert ("transformers" in instead) == ("this one" not in text)


def test_kinds_that_propose_it_without_asking_take_known_classes_alone() -> None:
    known = load_table("pytorch_backend")["architectures"]
    for names in (
        load_table("edgellm")["architectures"],
        load_table("rtx")["architectures"]["taken"],
        load_table("engine_classes")["pytorchOnly"],
        load_table("architectures")["architectures"],
    ):
        assert set(names) <= set(known)


@pytest.mark.parametrize("architecture", [KNOWN, UNKNOWN])
def test_formats_without_an_engine(architecture: str) -> None:
    rows = read_algorithms()
    name = next(name for name, row in rows.items() if not row["engine"] and row["llmapi"] and row["instead"])
    with pytest.raises(EnginixError) as e:
        check_support(name, None, architecture, find_target("h200"))
    assert ("llmapi kind" in str(e.value.fix)) == (architecture == KNOWN)


@pytest.mark.skipif(NIX is None, reason="no Nix here")
def test_evaluation_limits_as_the_commands_do() -> None:
    texts = [f"Do this, {text}." for text, _ in load_table("pytorch_backend")["proposals"]]
    names = f'[ "{KNOWN}" "{UNKNOWN}" null ]'
    limited = check(
        f"map (a: map (check.llmapiAdvice.limit a) (builtins.fromJSON ''{json.dumps(texts)}'')) {names}"
    )
    assert limited == [texts, [limit(text, UNKNOWN) for text in texts], texts]


@pytest.mark.skipif(NIX is None, reason="no Nix here")
@pytest.mark.parametrize("architecture", [KNOWN, UNKNOWN])
def test_each_refusal_of_evaluation_is_limited(architecture: str) -> None:
    """Each call of nix/check that proposes the kind, by the words of its error."""
    rows = read_algorithms()
    format_ = next(
        name for name, row in rows.items() if not row["engine"] and row["llmapi"] and row["instead"]
    )
    calls = (
        f'check.target.quantization "e" name "{format_}" gpu',
        'check.target.kvCache "e" name "NVFP4" gpu',
        'check.engine.runtime "e" rows "tensorrt" asked later',
        'check.checkpoint.quantization "e" formats { model.architecture = name; quantization = "FP9"; }',
    )
    scope = (
        f"lib = import {ROOT}/tests/hostpkgs/lib.nix; check = import {ROOT}/nix/check {{ inherit lib; }}; "
        f'name = "{architecture}"; gpu = {{ name = "h200"; sm = 90; }}; later = "trtllm-1.3.0rc26"; '
        'asked = { target = "h200"; limits = { }; architecture = name; }; '
        f"rows = (lib.importJSON {PACKAGE}/data/runtime/runtimes.json).runtimes; "
        f"formats = lib.importJSON {PACKAGE}/data/models/number_formats.json; "
    )
    for call in calls:
        command = [str(NIX), "--eval", "-E", f"let {scope} in {call}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "error: e: " in done.stderr, done.stderr
        assert ("llmapi" in done.stderr) == (architecture == KNOWN), done.stderr
