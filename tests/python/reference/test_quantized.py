"""Quantized checkpoints of TensorRT-LLM's own and of ModelOpt's export, judged by ModelOpt's arithmetic.

Why the median is held to the order of sums, and the worst position to less: ``test_fake_quantized.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enginix.checkpoint.convert import ConvertOptions, convert_model
from enginix.evaluation.judgement.logits import relative_error
from enginix.reference import Executor
from golden import unpack_archive

ORDER = 1e-5
TEXTS = [[(41 * i + 7 * n + n * n * i) % 157 for i in range(12)] for n in range(10)]


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
