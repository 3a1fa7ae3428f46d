"""ModelOpt's TensorRT-LLM export against our conversion of its unified export of the same model."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from enginix.checkpoint.compare_with_model import CheckpointComparison
from enginix.checkpoint.config import CheckpointConfig
from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.formats import format_of
from enginix.checkpoint.layout import CheckpointLayout
from enginix.checkpoint.mapped_tensors import RankFile
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.checkpoint.rank_modules import LinearModule
from enginix.checkpoint.verify import algorithm_of, verify_checkpoint

pytestmark = pytest.mark.slow
SIZES = (1, 2, 4)
FAMILIES = ("llama", "qwen2", "qwen3")
# Odd where the format allows: groups of 128 columns a rank for AWQ, blocks of 16 for NVFP4.
SHAPES: dict[str, dict[str, int]] = {
    "none": {
        "hidden_size": 72,
        "intermediate_size": 100,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
    "FP8": {"hidden_size": 72, "intermediate_size": 100, "num_attention_heads": 12, "num_key_value_heads": 4},
    "INT8_SQ": {
        "hidden_size": 72,
        "intermediate_size": 100,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
    "NVFP4": {
        "hidden_size": 192,
        "intermediate_size": 448,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
    "INT4_AWQ": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
}
HEAD = {"none": 6, "FP8": 6, "INT8_SQ": 6, "NVFP4": 16, "INT4_AWQ": 16}


def _model(family: str, number_format: str) -> Any:
    import torch
    import transformers

    classes = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }
    shape = (
        SHAPES[number_format] | {"head_dim": HEAD[number_format]}
        if family != "qwen2"
        else SHAPES[number_format]
    )
    config = classes[family](
        **shape, num_hidden_layers=2, vocab_size=157, max_position_embeddings=64, tie_word_embeddings=False,
        rope_theta=500000.0, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(len(family) + len(number_format))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.05)
            else:
                parameter.uniform_(0.5, 1.5)
    model.config.architectures = [type(model).__name__]
    return model


def _quantize(model: Any, number_format: str) -> None:
    import modelopt.torch.quantization as mtq
    import torch

    recipes = {
        "FP8": mtq.FP8_DEFAULT_CFG,
        "NVFP4": mtq.NVFP4_DEFAULT_CFG,
        "INT4_AWQ": mtq.INT4_AWQ_CFG,
        "INT8_SQ": mtq.INT8_SMOOTHQUANT_CFG,
    }
    if number_format in recipes:
        batches = [torch.randint(0, 157, (2, 24)) for _ in range(4)]
        mtq.quantize(model, recipes[number_format], lambda m: [m(batch) for batch in batches])


@pytest.fixture(scope="module", params=[(f, n) for f in FAMILIES for n in SHAPES], ids=lambda p: "-".join(p))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """One random model, exported by ModelOpt in both ways, at every size."""
    from modelopt.torch.export import export_hf_checkpoint, export_tensorrt_llm_checkpoint

    family, number_format = request.param
    directory = tmp_path_factory.mktemp(f"{family}-{number_format}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch

        model = _model(family, number_format)
        model.save_pretrained(directory / "original")
        _quantize(model, number_format)
        for tp in SIZES:
            export_tensorrt_llm_checkpoint(
                copy.deepcopy(model),
                "llama" if family == "llama" else "qwen",
                torch.bfloat16,
                str(directory / f"theirs-{tp}"),
                inference_tensor_parallel=tp,
            )
        if number_format == "none":
            model.save_pretrained(directory / "model")
        else:
            export_hf_checkpoint(model, torch.bfloat16, str(directory / "model"))
    return number_format, directory


def _f32(array: Any) -> Any:
    return array.astype(np.float32)


def _norm_before(linear: str) -> str | None:
    """The norm whose output a matrix reads, into which the unified export may fold a scale."""
    layer = linear.rsplit(".", 2)[0]
    if linear.endswith("attention.qkv"):
        return f"{layer}.input_layernorm.weight"
    if linear.endswith(("mlp.fc", "mlp.gate")):
        return f"{layer}.post_layernorm.weight"
    return None


def _effective(file: RankFile, linear: LinearModule, algorithm: str | None) -> tuple[Any, Any]:
    """Dequantized, times pre-quant scale, times norm: what a matrix does to its input; and its step."""
    values, step = format_of(algorithm, "modelopt").dequantize(file.leaves(linear.name), linear)
    norm = _norm_before(linear.name)
    if norm is None:
        return values, step
    return values * _f32(file[norm]), step * np.abs(_f32(file[norm]))


def _original(directory: Path, linear: LinearModule) -> Any:
    """The matrix before it was quantized, times the norm before it."""
    file = RankFile(directory / "original/model.safetensors")
    rows = [_f32(file[f"{s.module}.weight"])[slice(*s.rows), slice(*s.cols)] for s in linear.groups[0]]
    layer = linear.groups[0][0].module.rsplit(".", 2)[0]
    return np.concatenate(rows) * _f32(file[f"{layer}.post_attention_layernorm.weight"])


def _smoothed(mine: Any, step: Any, other: Any, other_step: Any, original: Any, name: str) -> None:
    """Two quantizations of one matrix that AWQ smoothed in two ways, in bfloat16.

    ModelOpt rounds to bfloat16 before it quantizes: four times for its TensorRT-LLM export, and twice more
    for the unified one, whose gate and up share a scale that is folded into the norm. So neither is nearer to
    the model than half a step and these roundings, and the two may be a step and a little apart.
    """
    for values, own, roundings in ((mine, step, 6), (other, other_step, 4)):
        bound = own / 2 * (1 + 1e-5) + roundings * 2**-9 * np.abs(original)
        assert (np.abs(values - original) <= bound).all(), name
    apart = np.abs(mine - other) / np.maximum(step, other_step)
    assert apart.max() <= 1.05 and (apart > 1).mean() < 1e-3, name


@pytest.mark.parametrize("tp", SIZES)
def test_same_weights(exported: tuple[str, Path], tp: int, tmp_path: Path) -> None:
    number_format, directory = exported
    options = ConvertOptions(mapping=CheckpointMapping(tp), parallel_embedding=True, nvfp4_form="modelopt")
    convert_model(directory / "model", tmp_path / "out", options)
    assert verify_checkpoint(tmp_path / "out").findings == []
    assert list(CheckpointComparison(tmp_path / "out", directory / "model").findings()) == []
    config = CheckpointConfig.read(tmp_path / "out")
    layout = CheckpointLayout(config)
    for rank in range(tp):
        ours = RankFile(tmp_path / "out" / f"rank{rank}.safetensors")
        theirs = RankFile(directory / f"theirs-{tp}" / f"rank{rank}.safetensors")
        if number_format in ("none", "NVFP4", "INT8_SQ"):
            assert ours.tensors.keys() == theirs.tensors.keys()
            for name, info in ours.tensors.items():
                assert info.dtype == theirs.tensors[name].dtype, name
                assert ours[name].tobytes() == theirs[name].tobytes(), name
            continue
        for module in layout.rank(rank):
            if isinstance(module, LinearModule) and (algorithm := algorithm_of(module, config)):
                mine, step = _effective(ours, module, algorithm)
                other, other_step = _effective(theirs, module, algorithm)
                bound = np.maximum(step, other_step) * (1 + 1e-5)
                if number_format == "INT4_AWQ" and module.name.endswith(("mlp.fc", "mlp.gate")):
                    original = _original(directory, module)
                    _smoothed(mine, step, other, other_step, original, module.name)
                else:
                    assert (np.abs(mine - other) <= bound).all(), module.name
        ends = ("ln_f.weight", "bias", "q_layernorm.weight", "k_layernorm.weight")
        names = [n for n in ours.tensors if n.endswith(ends)]
        if number_format != "INT4_AWQ":  # there, ModelOpt pads the vocabulary to a multiple of 64
            names += ["transformer.vocab_embedding.weight", "lm_head.weight"]
        for name in names:
            assert ours[name].tobytes() == theirs[name].tobytes(), name


def test_their_configuration_loses_what_ours_keeps(exported: tuple[str, Path], tmp_path: Path) -> None:
    """ModelOpt without tensorrt_llm drops the rope base of transformers-5 configs and says float16 logits."""
    _, directory = exported
    theirs = CheckpointConfig.read(directory / "theirs-1")
    convert_model(directory / "model", tmp_path / "out", ConvertOptions())
    ours = CheckpointConfig.read(tmp_path / "out")
    assert ours.rotary_base == 500000.0 and ours.raw["logits_dtype"] == "float32"
    assert theirs.rotary_base != ours.rotary_base or theirs.raw["logits_dtype"] != "float32"


assert ml_dtypes  # registers the NumPy dtypes that the arrays have
