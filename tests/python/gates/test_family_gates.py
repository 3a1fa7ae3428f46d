"""The gates on further families: a sound checkpoint passes, one with an error of NVIDIA's converter does not.

Random models with tiny-qwen3's tokenizer: they know nothing, so that agreement alone tells the two apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.evaluation.judgement import suite
from enginix.evaluation.judgement.outcome import GateOutcome
from enginix.evaluation.reference_answers import answers, hf, material
from enginix.evaluation.reference_answers.subject import ExecutorSubject, TransformersSubject
from enginix.reference import Executor
from enginix.reference.config import read_executor_config
from tiny_model import Tensors, damaged

SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": 2048, "num_key_value_heads": 2, "n_embd": 64, "n_layer": 2, "n_head": 4,
    "n_positions": 2048, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GRANITE = {"embedding_multiplier": 6.0, "attention_multiplier": 0.3, "residual_multiplier": 0.4}


def add_one_to_norms(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor.add_(1)


def write_embedding_as_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"].copy_(tensors["transformer.vocab_embedding.weight"])


def drop_multipliers(out: Path) -> None:
    raw = json.loads((out / "config.json").read_text())
    dropped = [key for key in raw if key.endswith("_multiplier") or key == "output_multiplier_scale"]
    (out / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if k not in dropped}))


# Architecture, keys, TensorRT-LLM 0.17's error: what changes the tensors, and what the files.
CASES: list[tuple[str, dict[str, Any], Callable[[Tensors], None], Callable[[Path], None]]] = [
    ("NemotronForCausalLM", {"head_dim": 16}, add_one_to_norms, lambda out: None),
    ("GPT2LMHeadModel", {"tie_word_embeddings": False}, write_embedding_as_head, lambda out: None),
    ("GraniteForCausalLM", GRANITE, lambda tensors: None, drop_multipliers),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "keys", "change", "edit"), CASES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_errors_of_nvidias_converter_are_rejected(
    name: str,
    keys: dict[str, Any],
    change: Callable[[Tensors], None],
    edit: Callable[[Path], None],
    model: Path,
    tmp_path: Path,
) -> None:
    import transformers

    tokenizer = hf.TransformersTokenizer(model)
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    stem = {"GPT2LMHeadModel": "GPT2"}.get(name, name.removesuffix("ForCausalLM"))
    torch.manual_seed(3)
    config = getattr(transformers, f"{stem}Config")(**(SIZES | keys | {"vocab_size": vocabulary}))
    own = getattr(transformers, name)(config)
    for parameter in own.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    own.float().save_pretrained(tmp_path / "model")
    asked = material.load_material(tokenizer, 2048, 2048)
    reference = answers.ask_reference(
        TransformersSubject(tmp_path / "model"), asked, frozenset({2}), {"name": name}, tokenizer
    )

    def judge(checkpoint: Path) -> dict[str, GateOutcome]:
        def load() -> suite.JudgedEngine:
            executor = Executor.load(checkpoint, dtype="float32")
            return suite.JudgedEngine(
                ExecutorSubject(executor),
                tokenizer,
                executor.config,
                without_rounding=executor.without_rounding,
            )

        wanted = suite.resolve_checkpoint_bounds(
            read_executor_config(checkpoint), {"agreement": {}, "perplexity": {}}
        )
        return {o.gate: o for o in suite.run_gates(load, tokenizer, asked, reference, wanted)[0]}

    sound = tmp_path / "sound"
    convert_model(tmp_path / "model", sound, ConvertOptions("float32", CheckpointMapping(), kind="tensorrt"))
    for outcome in judge(sound).values():
        assert outcome.passed, f"{outcome.gate}: {outcome.summary}"
    broken = damaged(sound, tmp_path / "broken", change)
    edit(broken)
    found = judge(broken)
    assert not found["agreement"].passed
