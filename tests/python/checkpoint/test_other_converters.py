"""Conversion by ModelOpt (really run) and by TensorRT-LLM (a stand-in module with its interface)."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models

from enginix import manifest
from enginix.checkpoint.convert import ConvertOptions
from enginix.checkpoint.external_converters import convert_with_modelopt, convert_with_tensorrt_llm
from enginix.checkpoint.mapped_tensors import RankFile
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.cli import main
from enginix.errors import EXIT_INPUT, CheckpointError, MachineError, UsageError
from enginix.model.family_rows import list_family_rows
from enginix.reference.config import ARCHITECTURES
from enginix.tables import load_table

SMALL = {"vocab_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
GROUPED = SMALL | {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 160},
    ),
    "GemmaForCausalLM": ("GemmaConfig", GROUPED | {"head_dim": 16}),
    "MptForCausalLM": (
        "MptConfig",
        {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "vocab_size": 160},
    ),
    "NemotronForCausalLM": ("NemotronConfig", GROUPED | {"head_dim": 16}),
    "Starcoder2ForCausalLM": ("Starcoder2Config", GROUPED | {"rope_theta": 100000.0}),
}

FINAL_NORMS = (".ln_f.weight", "model.norm.weight", ".norm_f.weight")
ADD_ONE = ("GemmaForCausalLM", "NemotronForCausalLM")  # their norms add one to the weight when they run


def _save(architecture: str, directory: Path) -> Any:
    import torch
    import transformers

    config_class, values = CONFIGS[architecture]
    torch.manual_seed(5)
    config = getattr(transformers, config_class)(**values)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    model.save_pretrained(directory)
    return model


def test_every_modelopt_family_is_tried() -> None:
    assert CONFIGS.keys() == load_table("converters")["converters"]["modelopt"]["architectures"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("tp", [1, 2])
def test_modelopt_exports(architecture: str, tp: int, tmp_path: Path) -> None:
    model = _save(architecture, tmp_path / "model")
    limit = load_table("converters")["converters"]["modelopt"]["architectures"][architecture][
        "maxTensorParallel"
    ]
    options = ConvertOptions(mapping=CheckpointMapping(tp, gpus_per_node=tp))
    if limit is not None and tp > limit:
        with pytest.raises(UsageError):
            convert_with_modelopt(tmp_path / "model", tmp_path / "out", options)
        return
    convert_with_modelopt(tmp_path / "model", tmp_path / "out", options)
    raw = json.loads((tmp_path / "out/config.json").read_text())
    assert raw["mapping"]["tp_size"] == tp and raw["logits_dtype"] == "float32"
    assert raw["mapping"]["gpus_per_node"] == tp
    if architecture == "Starcoder2ForCausalLM":
        assert raw["rotary_base"] == 100000.0
    if architecture == "GPT2LMHeadModel":
        assert raw["position_embedding_type"] == "learned_absolute"
    assert manifest.read_manifest(tmp_path / "out", "checkpoint").options["converter"] == "modelopt"
    # The embedding (row shards of it) and a norm, against the model itself.
    files = [RankFile(tmp_path / f"out/rank{r}.safetensors") for r in range(tp)]
    whole = np.concatenate([f["transformer.vocab_embedding.weight"].astype(np.float32) for f in files])
    source = model.get_input_embeddings().weight.detach().float().numpy()
    assert np.array_equal(whole[: len(source)], source)
    final = next(p for n, p in model.named_parameters() if n.endswith(FINAL_NORMS))
    offset = 1 if architecture in ADD_ONE else 0
    stored = files[0]["transformer.ln_f.weight"].astype(np.float32)
    assert np.allclose(stored, final.detach().float().numpy() + offset, rtol=2**-7, atol=2**-7)


def test_other_architectures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_models.write(tmp_path / "model", random_models.config("LlamaForCausalLM"))
    for name in ("Gemma3ForCausalLM", "DeepseekV3ForCausalLM", "NoSuchModel"):
        config = random_models.config("LlamaForCausalLM") | {"architectures": [name]}
        (tmp_path / "model/config.json").write_text(json.dumps(config))
        for converter in ("enginix", "modelopt", "tensorrt_llm"):
            words = [
                "convert",
                str(tmp_path / "model"),
                "-o",
                str(tmp_path / "out"),
                "--converter",
                converter,
            ]
            assert main(words) == EXIT_INPUT
            error = capsys.readouterr().err
            assert name in error and "fix:" in error
        assert not (tmp_path / "out").exists()


class StandIn:
    """Stands in for a TensorRT-LLM model class: records how it was called, writes a rank as it would."""

    calls: list[tuple[Any, ...]]

    def __init__(self, mapping: dict[str, int]) -> None:
        self.mapping = mapping

    @classmethod
    def from_hugging_face(cls, directory: str, dtype: str, mapping: dict[str, int]) -> StandIn:
        cls.calls.append((Path(directory).name, dtype, mapping))
        return cls(mapping)

    def save_checkpoint(self, directory: str, save_config: bool) -> None:
        out = Path(directory)
        data = random_models.safetensors_bytes({"lm_head.weight": np.zeros((2, 2), np.float32)})
        (out / f"rank{self.mapping['rank']}.safetensors").write_bytes(data)
        if save_config:
            kept = {k: v for k, v in self.mapping.items() if k != "rank"}
            (out / "config.json").write_text(json.dumps({"dtype": "bfloat16", "mapping": kept}))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """A stand-in ``tensorrt_llm``; the real one cannot be installed here."""
    package, models = types.ModuleType("tensorrt_llm"), types.ModuleType("tensorrt_llm.models")
    package.__dict__.update(__version__="stand-in", Mapping=lambda **sizes: sizes, models=models)
    StandIn.calls = []
    models.__dict__["MODEL_MAP"] = {"GPTJForCausalLM": StandIn}
    monkeypatch.setitem(sys.modules, "tensorrt_llm", package)
    monkeypatch.setitem(sys.modules, "tensorrt_llm.models", models)
    return StandIn


def _gptj(directory: Path) -> Path:
    random_models.write(directory, random_models.config("LlamaForCausalLM"))
    (directory / "config.json").write_text(json.dumps({"architectures": ["GPTJForCausalLM"]}))
    return directory


def test_tensorrt_llm_is_called_a_rank_at_a_time(stand_in: type[StandIn], tmp_path: Path) -> None:
    model = _gptj(tmp_path / "model")
    options = ConvertOptions(dtype="float16", mapping=CheckpointMapping(2, gpus_per_node=1))
    convert_with_tensorrt_llm(model, tmp_path / "out", options)
    size = {"world_size": 2, "gpus_per_node": 1, "tp_size": 2, "pp_size": 1}
    assert stand_in.calls == [
        ("model", "float16", size | {"rank": 0}),
        ("model", "float16", size | {"rank": 1}),
    ]
    made = manifest.read_manifest(tmp_path / "out")
    assert made.tools["tensorrt_llm"] == "stand-in" and made.options["gpusPerNode"] == 1


@pytest.mark.parametrize("wrote", [{}, {"gpus_per_node": 4}, {"gpus_per_node": "1"}, None, "none"])
def test_another_number_of_gpus_than_was_asked_for_is_no_checkpoint(
    wrote: Any, stand_in: type[StandIn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(self: StandIn, directory: str, save_config: bool) -> None:
        as_asked(self, directory, save_config)
        (Path(directory) / "config.json").write_text(json.dumps({"dtype": "bfloat16", "mapping": wrote}))

    as_asked = StandIn.save_checkpoint
    monkeypatch.setattr(stand_in, "save_checkpoint", careless)
    model = _gptj(tmp_path / "model")
    with pytest.raises(CheckpointError, match="but 1 was requested"):
        convert_with_tensorrt_llm(
            model, tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(2, gpus_per_node=1))
        )
    assert not (tmp_path / "out").exists()


def test_ranks_that_fill_no_nodes_are_refused_by_every_converter(
    stand_in: type[StandIn], tmp_path: Path
) -> None:
    options = ConvertOptions(mapping=CheckpointMapping(2, gpus_per_node=0))
    with pytest.raises(UsageError, match="--gpus-per-node 0"):
        convert_with_tensorrt_llm(_gptj(tmp_path / "model"), tmp_path / "out", options)
    gpt2 = tmp_path / "gpt2"
    random_models.write(gpt2, random_models.config("LlamaForCausalLM"))
    (gpt2 / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(UsageError, match="--gpus-per-node 3"):
        convert_with_modelopt(
            gpt2, tmp_path / "out", ConvertOptions(mapping=CheckpointMapping(4, gpus_per_node=3))
        )


def test_tensorrt_llm_failures_are_named(
    stand_in: type[StandIn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _gptj(tmp_path / "model")
    monkeypatch.setattr(stand_in, "save_checkpoint", lambda self, out, save_config: None)
    with pytest.raises(CheckpointError) as e:
        convert_with_tensorrt_llm(model, tmp_path / "out", ConvertOptions())
    assert "an incomplete checkpoint" in str(e.value) and not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="vila"):
        convert_with_tensorrt_llm(_gptj(tmp_path / "my-vila"), tmp_path / "out", ConvertOptions())


def test_tensorrt_llm_is_missing_here(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="tensorrt_llm"):
        convert_with_tensorrt_llm(_gptj(tmp_path / "model"), tmp_path / "out", ConvertOptions())
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_the_own_converter_takes_what_its_table_describes() -> None:
    """nix/check/checkpoint.nix reads converters.json; conversion reads the tables of architectures."""
    own = load_table("converters")["converters"]["enginix"]["architectures"]
    described = load_table("architectures")["architectures"]
    assert own.keys() == described.keys() | list_family_rows().keys()
    assert {name: own[name]["source"] for name in described} == {n: r["source"] for n, r in described.items()}
    assert {name for name, row in own.items() if row.get("reference", True)} == set(ARCHITECTURES)


def test_no_remedy_of_a_format_is_a_converter_that_refuses_it() -> None:
    """Other converters take unquantized models only."""
    table = load_table("number_formats")
    for row in (*table["algorithms"].values(), *table["methods"].values()):
        assert "--converter" not in (row["instead"] or "")
