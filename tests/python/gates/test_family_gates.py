"""The gates on further families: a sound checkpoint passes, one with an error of NVIDIA's converter does not.

Random models with tiny-qwen3's tokenizer: they know nothing, so that agreement alone tells the two apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class FamilyCase:
    """An architecture, and an error of TensorRT-LLM 0.17's converter with it.

    Attributes:
        error: name of the error in the page.
        change: what it does to the tensors.
        edit: what it does to the files.
    """

    name: str
    keys: dict[str, Any]
    error: str
    change: Callable[[Tensors], None] = lambda tensors: None
    edit: Callable[[Path], None] = lambda out: None


CASES = [
    FamilyCase("NemotronForCausalLM", {"head_dim": 16}, "norms get 1 added twice", add_one_to_norms),
    FamilyCase(
        "GPT2LMHeadModel",
        {"tie_word_embeddings": False},
        "the embedding in place of the head",
        write_embedding_as_head,
    ),
    FamilyCase("GraniteForCausalLM", GRANITE, "without the multipliers", edit=drop_multipliers),
]


class FamilyJudge:
    """A random model of a case's architecture, and the gates that compare checkpoints with it.

    Args:
        model: whose tokenizer and vocabulary it has.
    """

    def __init__(self, case: FamilyCase, model: Path, work: Path) -> None:
        import transformers

        self.case, self.work, self.tokenizer = case, work, hf.TransformersTokenizer(model)
        vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
        stem = {"GPT2LMHeadModel": "GPT2"}.get(case.name, case.name.removesuffix("ForCausalLM"))
        torch.manual_seed(3)
        config = getattr(transformers, f"{stem}Config")(**(SIZES | case.keys | {"vocab_size": vocabulary}))
        own = getattr(transformers, case.name)(config)
        for parameter in own.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        own.float().save_pretrained(work / "model")
        # Agreement and perplexity are judged by the passages: of the rest little is asked.
        whole = material.load_material(self.tokenizer, 2048, 2048)
        self.asked = replace(
            whole, prompts=whole.prompts[:1], questions=whole.questions[:1], recalls=(), long=()
        )
        self.reference = answers.ask_reference(
            TransformersSubject(work / "model"),
            self.asked,
            frozenset({2}),
            {"name": case.name},
            self.tokenizer,
        )

    def convert_soundly(self) -> Path:
        out = self.work / "sound"
        options = ConvertOptions("float32", CheckpointMapping(), kind="tensorrt")
        convert_model(self.work / "model", out, options)
        return out

    def convert_wrongly(self, sound: Path) -> Path:
        broken = damaged(sound, self.work / "broken", self.case.change)
        self.case.edit(broken)
        return broken

    def __call__(self, checkpoint: Path) -> dict[str, GateOutcome]:
        def load() -> suite.JudgedEngine:
            executor = Executor.load(checkpoint, dtype="float32")
            return suite.JudgedEngine(
                ExecutorSubject(executor),
                self.tokenizer,
                executor.config,
                without_rounding=executor.without_rounding,
            )

        wanted = suite.resolve_checkpoint_bounds(
            read_executor_config(checkpoint), {"agreement": {}, "perplexity": {}}
        )
        outcomes, *_ = suite.run_gates(load, self.tokenizer, self.asked, self.reference, wanted)
        return {o.gate: o for o in outcomes}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_errors_of_nvidias_converter_are_rejected(case: FamilyCase, model: Path, tmp_path: Path) -> None:
    judge = FamilyJudge(case, model, tmp_path)
    sound = judge.convert_soundly()
    for outcome in judge(sound).values():
        assert outcome.passed, f"{outcome.gate}: {outcome.summary}"
    assert not judge(judge.convert_wrongly(sound))["agreement"].passed
