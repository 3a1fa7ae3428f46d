"""Quantized checkpoints, judged by ModelOpt's fake-quantized models and on TensorRT-LLM's own checkpoints.

A sum in another order can push an activation over a rounding boundary; that token then differs by a step of
the format, and all after it a little. So the median over positions is held to the order of sums, and the
worst position to a fraction of what quantization itself changes.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.checkpoint.mapping import CheckpointMapping
from enginix.errors import CheckpointError
from enginix.evaluation.judgement.logits import relative_error
from enginix.quantize import ptq
from enginix.quantize.formats import resolve_format
from enginix.reference import Executor, formats, linear
from golden import unpack_archive

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


def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((unpack_archive("golden") / "index.json").read_text())
    plain = ("bfloat16", "float32")
    return [
        r
        for r in rows
        if r["kind"] == "convert"
        and r["result"] == "ok"
        and not r["known_defect"]
        and r["format"] not in plain
    ]


ROWS = _rows()


def _dequantize(model: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The Hugging Face tensors by ModelOpt's own dequantizer, scales kept beside them."""
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    out = dict(model)
    for name in [n for n in model if n.endswith(".weight_scale")]:
        module = name.removesuffix(".weight_scale")
        weight, scale = model[f"{module}.weight"], model[name]
        if f"{module}.weight_scale_2" in model:
            packed = NVFP4QTensor(
                torch.Size([*weight.shape[:-1], 2 * weight.shape[-1]]), torch.float32, weight
            )
            values = packed.dequantize(
                dtype=torch.float32, scale=scale, double_scale=model[f"{module}.weight_scale_2"],
                block_sizes={-1: 16},
            )  # fmt: skip
        else:
            values = weight.float() * (scale[:, None] if scale.dim() else scale)
        out[f"{module}.weight"] = values
    return out


NAMES = {"fc": "gate_proj", "gate": "up_proj", "proj": "down_proj", "dense": "o_proj"}


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['case']}/{r['output']}")
def test_weights_are_the_models(golden: Path, row: dict[str, Any]) -> None:
    """Every matrix, merged over ranks, is the model's: exactly, or to half a step where rescaled."""
    pytest.importorskip("modelopt")
    source = golden / row["case"] / "hf"
    tensors: dict[str, torch.Tensor] = {}
    for path in source.glob("*.safetensors"):
        tensors |= load_file(path)
    onload = "onload" in row["case"]
    model = _dequantize(tensors)
    executor = Executor.load(golden / row["case"] / row["output"], dtype="float32")
    (logits,) = executor.forward([list(range(20))])
    assert bool(torch.isfinite(logits).all())
    for index, layer in enumerate(executor.layers):
        prefix = f"model.layers.{index}"

        def weights(*names: str, prefix: str = prefix) -> torch.Tensor:
            return torch.cat([model[f"{prefix}.{name}.weight"].float() for name in names])

        # Merged FP8 matrices take the largest of their scales, and are rounded again; no others are.
        rescaled = row["format"].startswith("FP8") and "PER_CHANNEL" not in row["format"]
        pairs = [
            (layer.attention.qkv, weights(*(f"self_attn.{x}_proj" for x in "qkv")), rescaled),
            (layer.attention.dense, weights("self_attn.o_proj"), onload),
        ]
        if executor.config.experts is None:
            for name in ("fc", "gate", "proj"):
                pairs.append((getattr(layer.mlp, name), weights(f"mlp.{NAMES[name]}"), onload))
        else:
            names = {"up": ("w3", "up_proj"), "gate": ("w1", "gate_proj"), "down": ("w2", "down_proj")}
            block = "block_sparse_moe" if f"{prefix}.block_sparse_moe.gate.weight" in model else "mlp"
            pick = 0 if block == "block_sparse_moe" else 1
            for expert in range(executor.config.experts.count):
                at = f"{block}.experts.{expert}"
                both = weights(f"{at}.{names['up'][pick]}", f"{at}.{names['gate'][pick]}")
                down = weights(f"{at}.{names['down'][pick]}")
                pairs.append((_one(layer.mlp.experts.fc, expert), both, rescaled))
                pairs.append((_one(layer.mlp.experts.proj, expert), down, False))
        for matrix, expected, rounded in pairs:
            found = matrix.weight if hasattr(matrix, "weight") else matrix
            if rounded or onload:
                # FP8 has 4 significant bits: another scale moves a value by half a step, 2^-4 of it.
                half = expected.abs() / 16 * 1.01
                least = expected.abs().max() / 448 / 2**9
                assert float(((found - expected).abs() - half).max()) <= least
            else:
                # Experts' scales in NVFP4 are divided out of a product: one rounding.
                assert torch.allclose(found, expected, rtol=1e-6 if executor.config.experts else 0, atol=0)


def _one(linear: Any, expert: int) -> torch.Tensor:
    weight: torch.Tensor = linear.weight[expert]
    return weight


def _round(x: torch.Tensor, scale: float, scheme: str) -> torch.Tensor:
    """By ModelOpt's own functions."""
    from modelopt.torch.quantization.qtensor import NVFP4QTensor
    from modelopt.torch.quantization.tensor_quant import fp8_eager

    if scheme == "FP8":
        found: torch.Tensor = fp8_eager(x, torch.tensor(scale * 448))
        return found
    double = torch.tensor(scale)
    held, blocks, _ = NVFP4QTensor.quantize(x.clone(), 16, None, double)
    out: torch.Tensor = held.dequantize(
        dtype=torch.float32, scale=blocks, double_scale=double, block_sizes={-1: 16}
    )
    return out.view(x.shape)


def _hooked(model: Any, tensors: dict[str, torch.Tensor], scheme: str, ep: int) -> None:
    """Rounds each linear's input with the model's scales, merged as TensorRT-LLM merges them."""

    def scale(layer: str, *leaves: str) -> float:
        return max(float(tensors[f"{layer}.{leaf}.input_scale"]) for leaf in leaves)

    for name, module in model.named_modules():
        layer, _, leaf = name.rpartition(".")
        if leaf == "experts":
            count = len(module.down_proj)
            each = range(count)
            groups = [
                range(e // (count // ep) * (count // ep), (e // (count // ep) + 1) * (count // ep))
                for e in each
            ]
            first = [max(scale(f"{name}.{g}", "gate_proj", "up_proj") for g in groups[e]) for e in each]
            second = [max(scale(f"{name}.{g}", "down_proj") for g in groups[e]) for e in each]

            def forward(
                x: torch.Tensor,
                index: torch.Tensor,
                share: torch.Tensor,
                m: Any = module,
                first: list[float] = first,
                second: list[float] = second,
            ) -> torch.Tensor:
                out = torch.zeros_like(x)
                for row in range(len(x)):
                    for expert, weight in zip(index[row].tolist(), share[row], strict=True):
                        hidden = m.gate_up_proj[expert] @ _round(x[row, None], first[expert], scheme)[0]
                        gate, up = hidden.chunk(2)
                        hidden = torch.nn.functional.silu(gate) * up
                        hidden = _round(hidden[None], second[expert], scheme)[0]
                        out[row] += weight * (m.down_proj[expert] @ hidden)
                return out

            module.forward = forward
        elif f"{name}.input_scale" in tensors:
            together = ("q_proj", "k_proj", "v_proj") if leaf in ("q_proj", "k_proj", "v_proj") else (leaf,)
            own = scale(layer, *together)
            module.register_forward_pre_hook(lambda _, inputs, own=own: (_round(inputs[0], own, scheme),))


STATIC = [r for r in ROWS if r["format"] in ("NVFP4", "FP8") and "-kv-" not in r["case"]]


@pytest.mark.parametrize("row", STATIC, ids=lambda r: f"{r['case']}/{r['output']}")
def test_logits_equal_modelopts_arithmetic(golden: Path, tmp_path: Path, row: dict[str, Any]) -> None:
    """transformers with dequantized weights and ModelOpt's rounding of activations.

    NVFP4 cannot be fake-quantized on a CPU by ModelOpt; its storage class can round there, and does it here.
    """
    pytest.importorskip("modelopt")
    import transformers

    source = golden / row["case"] / "hf"
    tensors: dict[str, torch.Tensor] = {}
    for path in source.glob("*.safetensors"):
        tensors |= load_file(path)
    config = json.loads((source / "config.json").read_text())
    config.pop("quantization_config", None)
    checkpoint = golden / row["case"] / row["output"]
    values = _dequantize(tensors)
    executor = Executor.load(checkpoint, dtype="float32")
    experts = executor.config.experts
    if experts is not None:
        config["norm_topk_prob"] = experts.renormalize
    (tmp_path / "config.json").write_text(json.dumps(config))
    # Merged FP8 matrices were rescaled: take them as they are, test_weights_are_the_models has seen them.
    for index, layer in enumerate(executor.layers if row["format"] == "FP8" else ()):
        prefix = f"model.layers.{index}"
        names = [f"{prefix}.self_attn.{x}_proj.weight" for x in "qkv"]
        parts = list(layer.attention.qkv.weight.split([len(values[n]) for n in names]))
        for expert in range(experts.count if experts else 0):
            names += [f"{prefix}.mlp.experts.{expert}.{x}_proj.weight" for x in ("up", "gate")]
            parts += layer.mlp.experts.fc.weight[expert].chunk(2)
        values |= dict(zip(names, parts, strict=True))
    keep = {n: t.float().contiguous() for n, t in values.items() if n.endswith((".weight", ".bias"))}
    save_file(keep, tmp_path / "model.safetensors", {"format": "pt"})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = [(13 * i + 5) % executor.config.vocab_size for i in range(48)]
    with torch.no_grad():
        exact = model(torch.tensor([ids])).logits[0]
        _hooked(model, tensors, row["format"], executor.config.mapping.ep)
        expected = model(torch.tensor([ids])).logits[0]
    (found,) = executor.forward([ids])
    change = float(relative_error(expected, exact).median())
    assert change > 1e-3
    error = relative_error(found, expected)
    assert float(error.median()) <= ORDER and float(error.max()) < change


def test_both_forms_of_nvfp4_say_the_same(golden: Path, tmp_path: Path) -> None:
    ids = list(range(3, 60))
    found = []
    for form in ("trtllm", "modelopt"):
        convert_model(golden / "llama-nvfp4/hf", tmp_path / form, ConvertOptions(nvfp4_form=form))
        found.append(Executor.load(tmp_path / form, dtype="float32").forward([ids])[0])
    assert torch.equal(*found)


EXPORTS = ("fp8-kvfp8", "int4-awq", "int8-sq", "nvfp4", "w4a8-awq")


@pytest.mark.parametrize("name", EXPORTS)
def test_modelopts_export_loads(golden: Path, name: str) -> None:
    """ModelOpt's TensorRT-LLM export computes the same however it is cut."""
    found = sorted((golden / f"load-llama-{name}").glob("modelopt-*"))
    logits = [torch.cat(Executor.load(path, dtype="float32").forward(TEXTS)) for path in found]
    assert bool(torch.isfinite(logits[0]).all())
    for other in logits[1:]:
        assert float(relative_error(other, logits[0]).median()) <= ORDER


# Rounding, by its definition.

FLOATS = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=200, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_fp8_is_the_nearest_value(values: list[float]) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    codes = codes[torch.isfinite(codes)]
    x = torch.tensor(values)
    found = formats.round_fp8(x)
    nearest = (x.clamp(-448, 448)[:, None] - codes).abs().amin(1)
    assert torch.equal((x.clamp(-448, 448) - found).abs(), nearest)


@settings(max_examples=200, deadline=None)
@given(st.lists(FLOATS.map(lambda f: f / 1000), min_size=1, max_size=20))
def test_fp4_is_the_nearest_value(values: list[float]) -> None:
    x = torch.tensor([*values, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -5.0])
    found = formats.round_fp4(x)
    nearest = (x.clamp(-6, 6)[:, None] - formats.FP4).abs().amin(1)
    assert torch.equal((x.clamp(-6, 6) - found).abs(), nearest)
    # Halfway goes to the even code.
    assert found[-9:].tolist() == [0, 1, 1, 2, 2, 4, 4, 0, -4]


@settings(max_examples=60, deadline=None)
@given(st.lists(FLOATS, min_size=32, max_size=32), st.floats(0.0009765625, 8, width=32))
def test_nvfp4_is_modelopts(values: list[float], top: float) -> None:
    qtensor = pytest.importorskip("modelopt.torch.quantization.qtensor")
    x, scale = torch.tensor([values]), torch.tensor(top / (6 * 448))
    held, blocks, _ = qtensor.NVFP4QTensor.quantize(x.clone(), 16, None, scale)
    expected = held.dequantize(dtype=torch.float32, scale=blocks, double_scale=scale, block_sizes={-1: 16})
    assert torch.allclose(formats.fake_quantize_nvfp4(x, scale), expected.view(1, -1), rtol=1e-5, atol=0)


def test_int4_rows_are_unpacked_by_sign() -> None:
    values = torch.arange(-8, 8).view(4, 4)
    packed = (values[0::2] & 15 | (values[1::2] & 15) << 4).to(torch.uint8).view(torch.int8)
    assert torch.equal(formats._int4_rows(packed), values.float())


def test_mixed_precision_and_exclude_lists(golden: Path, tmp_path: Path) -> None:
    """One layer's feed-forward in full precision, said in both ways; it is not the same as all in FP8."""
    whole = tmp_path / "whole"
    convert_model(golden / "llama-fp8/hf", whole, ConvertOptions(dtype="float32"))
    modules = [f"transformer.layers.0.mlp.{name}" for name in ("fc", "gate", "proj")]
    tensors = load_file(whole / "rank0.safetensors")
    for module in modules:
        scale = tensors.pop(f"{module}.weights_scaling_factor")
        tensors.pop(f"{module}.activation_scaling_factor")
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"].float() * scale
    config = json.loads((whole / "config.json").read_text())
    rest = {
        f"transformer.layers.{n}.{name}": {"quant_algo": "FP8"}
        for n in range(config["num_hidden_layers"])
        for name in ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")
        if f"transformer.layers.{n}.{name}" not in modules
    }
    said = {
        "listed": {"quant_algo": "MIXED_PRECISION"},
        "excluded": {"quant_algo": "FP8", "exclude_modules": ["*lm_head", "*.0.mlp.*"]},
    }
    found = {"whole": Executor.load(whole).forward([TEXTS[0]])[0]}
    for name, quantization in said.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "rank0.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({**config, "quantization": quantization}))
        (tmp_path / name / "quant_cfg.json").write_text(json.dumps({"quantized_layers": rest}))
        found[name] = Executor.load(tmp_path / name).forward([TEXTS[0]])[0]
    assert torch.equal(found["listed"], found["excluded"])
    assert not torch.equal(found["listed"], found["whole"])
    for broken in ("[]", '{"quantized_layers": {"a": {}}}', "{", '{"quantized_layers": {"a": 1}}'):
        (tmp_path / "listed/quant_cfg.json").write_text(broken)
        with pytest.raises(CheckpointError):
            Executor.load(tmp_path / "listed")


# What is refused.


def _changed(golden: Path, out: Path, case: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    import shutil

    shutil.copytree(golden / case, out)
    tensors = load_file(out / "rank0.safetensors")
    change(tensors)
    save_file(tensors, out / "rank0.safetensors")
    return out


LAYER = "transformer.layers.0"


@pytest.mark.parametrize(
    "case,change,says",
    [
        (
            "llama-fp8/trtllm-tp2-bfloat16",
            lambda t: t[f"{LAYER}.mlp.fc.activation_scaling_factor"].mul_(2),
            "activation scale of rank 1",
        ),
        (
            "llama-fp8/trtllm-tp1-bfloat16",
            lambda t: t[f"{LAYER}.mlp.fc.activation_scaling_factor"].zero_(),
            "not positive",
        ),
        (
            "llama-fp8/trtllm-tp1-bfloat16",
            lambda t: t[f"{LAYER}.mlp.fc.weight"].view(torch.uint8)[0, 0].fill_(0xFF),
            "holds NaN",
        ),
        (
            "llama-fp8/trtllm-tp1-bfloat16",
            lambda t: t.pop(f"{LAYER}.mlp.fc.weights_scaling_factor"),
            "weights_scaling_factor is missing",
        ),
        (
            "llama-fp8-kvfp8/trtllm-tp1-bfloat16",
            lambda t: t.pop(f"{LAYER}.attention.kv_cache_scaling_factor"),
            "kv_cache_scaling_factor is missing",
        ),
        (
            "llama-fp8-kvfp8/trtllm-tp1-bfloat16",
            lambda t: t[f"{LAYER}.attention.kv_cache_scaling_factor"].neg_(),
            "not positive",
        ),
        (
            "llama-nvfp4/trtllm-tp1-bfloat16",
            lambda t: t.pop(f"{LAYER}.mlp.fc.weights_block_scaling_factor"),
            "weights_block_scaling_factor is missing",
        ),
    ],
)
def test_damaged_scales_are_named(
    golden: Path, tmp_path: Path, case: str, change: Callable[[dict[str, torch.Tensor]], object], says: str
) -> None:
    with pytest.raises(CheckpointError, match=says):
        Executor.load(_changed(golden, tmp_path / "c", case, change))


@pytest.mark.parametrize(
    "quantization,says",
    [
        ({"quant_algo": "W4A16_GPTQ"}, "weights in W4A16_GPTQ"),
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"}, "KV cache in NVFP4"),
        ({"quant_algo": "FP8", "exclude_modules": "lm_head"}, "exclude_modules"),
        ({"quant_algo": "FP8", "exclude_modules": [3]}, "exclude_modules"),
        ({"quant_algo": "MIXED_PRECISION"}, "quant_cfg.json"),
        ({"quant_algo": "W4A16_AWQ", "group_size": 7}, "groups of 7"),
        ({"quant_algo": None}, "weight is F8_E4M3"),
    ],
)
def test_contradictions_are_refused(
    golden: Path, tmp_path: Path, quantization: dict[str, Any], says: str
) -> None:
    out = _changed(golden, tmp_path / "c", "llama-fp8/trtllm-tp1-bfloat16", lambda t: None)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization": quantization}))
    with pytest.raises(CheckpointError, match=says):
        Executor.load(out)


@pytest.mark.parametrize(
    "case",
    [
        "llama-fp8/trtllm-tp1-bfloat16",
        "llama-fp8-pc-pt/trtllm-tp1-bfloat16",
        "qwen3-fp8-kvfp8/trtllm-tp1-bfloat16",
    ],
)
def test_products_of_fp8_codes_are_those_of_their_numbers(golden: Path, case: str) -> None:
    """In float32 they differ by the order of sums, and by what that does to later roundings."""
    emulated, multiplied = (Executor.load(golden / case, fp8_products=on) for on in (False, True))
    kinds = [type(layer.attention.qkv) for layer in multiplied.layers]
    assert kinds == [linear.Fp8Linear] * len(kinds) and type(emulated.layers[0].attention.qkv) is not kinds[0]
    (expected,), (found,) = (executor.forward([list(range(1, 40))]) for executor in (emulated, multiplied))
    error = relative_error(found, expected)
    assert 0 < float(error.median()) < 1e-6
    assert float(error.max()) < 1e-2, "an activation between two codes may become the other one"
    one, other = (executor.decode(_filled(executor), {0: 7})[0] for executor in (emulated, multiplied))
    assert float((other - one).norm() / one.norm()) < 1e-2


def _filled(executor: Executor) -> Any:
    cache = executor.new_cache(1)
    executor.prefill(cache, 0, [3, 1, 4])
    return cache


def test_ranks_of_fp8_codes_are_multiplied_as_numbers(golden: Path) -> None:
    executor = Executor.load(golden / "llama-fp8/trtllm-tp2-bfloat16", fp8_products=True)
    assert type(executor.layers[0].attention.qkv) is linear.QuantizedLinear
