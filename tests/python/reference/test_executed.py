"""Which architecture was executed in which number format, and judged by what: from the tests' own parameters.

python tests/python/reference/test_executed.py      # writes the table into docs/explanation/verification.md
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs/explanation/verification.md"
BEGIN, END = "<!-- executed: test_executed.py -->", "<!-- end of executed -->"
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
# Column → what the tests call it.
COLUMNS = {
    "unquantized": {"bfloat16", "float32"},
    "FP8": {"FP8", "FP8 + FP8 KV", "FP8 + FP8 KV cache"},
    "FP8 per channel, token": {"FP8_PC_PT", "FP8_PER_CHANNEL_PER_TOKEN"},
    "NVFP4": {"NVFP4", "NVFP4 + FP8 KV cache"},
    "W4A16_AWQ": {"INT4_AWQ", "INT4_WO"},
    "W4A8_AWQ": {"W4A8_AWQ"},
    "W8A8_SQ": {"INT8_SQ"},
    "FP8 KV": {"FP8 + FP8 KV", "KV FP8"},
    "INT8 KV": {"KV INT8"},
}
# Judges, the strictest first.
JUDGES = {
    "T": "transformers' logits on the model",
    "M": "logits of ModelOpt's fake-quantized model",
    "R": "transformers with dequantized weights and ModelOpt's (for KV caches NumPy's) rounding",
    "W": "ModelOpt's dequantized weights alone, matrix by matrix",
}


def _module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"executed_{name}", HERE / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def executed() -> set[tuple[str, str, str]]:
    """(architecture, format as the tests call it, judge) of every parameter of the tests."""
    golden, fake, quantized = map(_module, ("test_golden", "test_fake_quantized", "test_quantized"))
    found = {(r["architecture"], r["format"], "T") for r in golden.SOUND}
    found |= {
        (ARCHITECTURES[case.split("-")[0]], "bfloat16", "T") for case in _module("test_converted").CASES
    }
    found |= {(ARCHITECTURES[f], name, "M") for f in fake.FAMILIES for name in fake.FORMATS}
    found |= {(r["architecture"], r["format"], "W") for r in quantized.ROWS}
    found |= {(r["architecture"], r["format"], "R") for r in quantized.STATIC}
    kv = _module("test_kv_cache")
    found |= {
        (ARCHITECTURES[case.split("-")[0]], f"KV {name}", "R") for case in kv.CASES for name in kv.KV_FORMATS
    }
    return found


def table() -> str:
    """The table in Markdown."""
    found = executed()
    rows = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for architecture in ARCHITECTURES.values():
        cells = []
        for names in COLUMNS.values():
            by = {judge for a, name, judge in found if a == architecture and name in names}
            cells.append(next((judge for judge in JUDGES if judge in by), "–"))
        rows.append(f"| {architecture} | {' | '.join(cells)} |")
    said = "; ".join(f"{letter}: {what}" for letter, what in JUDGES.items())
    return "\n".join([*rows, "", f"{said}; –: not executed by a test."])


def test_the_page_shows_what_is_executed() -> None:
    page = PAGE.read_text("utf-8")
    assert page.split(BEGIN)[1].split(END)[0].strip() == table(), "write it again: python " + __file__


def test_every_architecture_is_executed_unquantized_and_with_quantized_caches() -> None:
    found = executed()
    for architecture in ARCHITECTURES.values():
        for name, judge in (("bfloat16", "T"), ("KV FP8", "R"), ("KV INT8", "R")):
            assert (architecture, name, judge) in found


if __name__ == "__main__":
    sys.path.append(str(HERE.parent / "checkpoint"))
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}", "utf-8")
