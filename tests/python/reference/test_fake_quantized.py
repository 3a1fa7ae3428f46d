"""Quantized checkpoints, judged by ModelOpt's fake-quantized models.

A sum in another order can push an activation over a rounding boundary; that token then differs by a step of
the format, and all after it a little. So the median over positions is held to the order of sums, and the
worst position to a fraction of what quantization itself changes.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.evaluation.judgement.logits import relative_error
from enginix.quantize import ptq
from enginix.quantize.formats import resolve_format
from enginix.reference import Executor

ORDER = 1e-5
# Many short texts: a token that crosses a rounding boundary spoils only what follows it.
TEXTS = [[(41 * i + 7 * n + n * n * i) % 157 for i in range(12)] for n in range(10)]
FORMATS = ("FP8", "FP8_PC_PT", "INT8_SQ", "INT4_AWQ", "INT4_WO", "W4A8_AWQ", "FP8 + FP8 KV")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3")


MORE: dict[str, dict[str, Any]] = {"qwen2": {}, "mistral": {"head_dim": 32, "sliding_window": None},
        "phi3": {"pad_token_id": 0}}  # fmt: skip


def _model(family: str) -> Any:
    import transformers

    kinds = {
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
        "phi3": transformers.Phi3Config,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }
    config = kinds[family](
        hidden_size=256, intermediate_size=512, num_attention_heads=8, num_key_value_heads=4,
        num_hidden_layers=1, vocab_size=157, max_position_embeddings=64, tie_word_embeddings=False,
        rope_theta=5e5, dtype="float32", **MORE.get(family, {"head_dim": 32}),
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.05)
            else:
                parameter.uniform_(0.5, 1.5)
    model.config.architectures = [type(model).__name__]
    return model


def _recipe(name: str) -> Any:
    import modelopt.torch.quantization as mtq

    recipes = {
        "FP8": mtq.FP8_DEFAULT_CFG,
        "FP8_PC_PT": mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG,
        "INT8_SQ": mtq.INT8_SMOOTHQUANT_CFG,
        "INT4_AWQ": mtq.INT4_AWQ_CFG,
        "INT4_WO": mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG,
        "W4A8_AWQ": mtq.W4A8_AWQ_BETA_CFG,
    }
    if name in recipes:
        return recipes[name]
    return mtq.utils.update_quant_cfg_with_kv_cache_quant(
        copy.deepcopy(mtq.FP8_DEFAULT_CFG), mtq.FP8_KV_CFG["quant_cfg"]
    )


def _share(model: Any) -> None:
    """Merged matrices share their scales, keys and values one: as TensorRT-LLM's checkpoints have it."""
    from modelopt.torch.export.quant_utils import preprocess_linear_fusion

    for layer in model.model.layers:
        attention = layer.self_attn
        if not hasattr(attention, "qkv_proj"):  # Phi-3 has them merged
            preprocess_linear_fusion([attention.q_proj, attention.k_proj, attention.v_proj])
            preprocess_linear_fusion([layer.mlp.gate_proj, layer.mlp.up_proj])
        kv = [getattr(attention, f"{x}_bmm_quantizer", None) for x in "kv"]
        if all(q is not None and q.amax is not None for q in kv):
            most = torch.max(torch.stack([q.amax for q in kv]))
            for quantizer in kv:
                quantizer.amax = most


@pytest.fixture(
    scope="module",
    params=[(family, recipe) for family in FAMILIES for recipe in FORMATS],
    ids=lambda p: "-".join(p),
)
def quantized(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, torch.Tensor, torch.Tensor]]:
    """Format, unified export, logits of the fake-quantized model, logits of the model."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    family, name = request.param
    directory = tmp_path_factory.mktemp("quantized") / "model"
    torch.set_num_threads(1)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        model = _model(family)
        exact = model(torch.tensor(TEXTS)).logits.flatten(0, 1)
        generator = torch.Generator().manual_seed(1)
        batches = [torch.randint(0, 157, (2, 24), generator=generator) for _ in range(4)]
        mtq.quantize(model, _recipe(name), lambda m: [m(batch) for batch in batches])
        _share(model)
        fake = model(torch.tensor(TEXTS)).logits.flatten(0, 1)
        if name == "INT4_WO":
            ptq._set_neutral_scales(
                model, resolve_format("int4_wo")
            )  # as enginix quantize does before it exports
        export_hf_checkpoint(model, torch.float32, str(directory))
    yield name, directory, fake, exact


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_equals_modelopts_fake_quantized_model(
    quantized: tuple[str, Path, torch.Tensor, torch.Tensor], ranks: int, tmp_path: Path
) -> None:
    name, model, fake, exact = quantized
    convert_model(model, tmp_path / "out", ConvertOptions(dtype="float32", mapping=CheckpointMapping(ranks)))
    executor = Executor.load(tmp_path / "out", dtype="float32")
    found = torch.cat(executor.forward(TEXTS))
    error = relative_error(found, fake)
    change = float(relative_error(fake, exact).median())
    assert change > 1e-2, "quantization changed nothing: this compares nothing"
    if name == "FP8_PC_PT" and ranks > 1:
        # Each rank scales its own columns of a token; ModelOpt's model is not cut.
        assert float(error.median()) < change
    else:
        assert float(error.median()) <= ORDER
        assert float(error.quantile(0.9)) < change / 2 and float(error.max()) < change
    cache, stepped = executor.new_cache(2), []
    for text in TEXTS:
        executor.prefill(cache, 0, text[:8])
        stepped += [executor.decode(cache, {0: token})[0] for token in text[8:]]
    error = relative_error(torch.stack(stepped), found.view(len(TEXTS), 12, -1)[:, 8:].flatten(0, 1))
    assert float(error.median()) <= ORDER and float(error.max()) < change


# TensorRT-LLM's own checkpoints, and ModelOpt's TensorRT-LLM export.
