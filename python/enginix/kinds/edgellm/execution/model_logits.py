"""Compute a model's logits by Hugging Face transformers in float32, one weight in memory at a time.

python -m enginix.kinds.edgellm.execution.model_logits MODEL TOKENS OUT

TOKENS is a JSON list of token lists; OUT becomes a NumPy file of logits [mode, sequence, position,
vocabulary], its modes in the order of :data:`MODES`. A quantized checkpoint is dequantized: weights are codes
times scales, inputs of quantized matrices pass their quantizer.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
import transformers

from enginix.errors import EnginixError, ModelError
from enginix.kinds.edgellm.execution.plugin_nodes import FLOAT4_MOST, FLOAT8_MOST, FP4_BLOCK, GAIN_EXPONENT
from enginix.kinds.edgellm.expected_tensors import HEAD, TABLE
from enginix.kinds.edgellm.int4_layouts import BIAS, read_checkpoint_codes, split_nibbles
from enginix.kinds.edgellm.values import FLOAT_DTYPES
from enginix.model import ModelWeights, open_weights
from enginix.model.jsonfile import read_object
from enginix.model.mapped_tensors import map_tensor

# smooth: quantizers do not round (plugin_nodes.find_gain). rounded: they do. half: they do, and inputs of
# matrices are rounded to float16 before, which shows what that alone does to this model.
MODES = ("smooth", "rounded", "half")
Quantizer = Callable[[torch.Tensor, bool], torch.Tensor]


class CheckpointTensors:
    """Tensors of a checkpoint by name, read when asked for, dequantized."""

    def __init__(self, weights: ModelWeights) -> None:
        self.weights = weights

    def __contains__(self, name: str) -> bool:
        return name in self.weights.tensors

    def _map(self, name: str) -> np.ndarray[Any, Any]:
        info = self.weights.tensors.get(name)
        if info is None:
            raise ModelError(f"tensor {name} is missing", where=self.weights.directory)
        if info.dtype not in (*FLOAT_DTYPES, "F8_E4M3", "I8", "U8"):
            raise ModelError(f"tensor {name} is of type {info.dtype}", where=info.path)
        return map_tensor(info)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor in float32."""
        return torch.from_numpy(np.ascontiguousarray(self._map(name), dtype=np.float32))

    def read_rows(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Return rows of a matrix in float32, without reading the others."""
        return torch.from_numpy(np.asarray(self._map(name)[rows.numpy()], dtype=np.float32))

    def read_weight(self, name: str) -> torch.Tensor:
        """Return a weight in float32: codes times scales where it is quantized."""
        info = self.weights.tensors.get(name)
        if info is None or info.dtype in FLOAT_DTYPES:
            return self.read(name)
        base = name.removesuffix(".weight")
        if info.dtype == "F8_E4M3":
            return self.read(name) * self.read(f"{base}.weight_scale")
        if info.dtype == "I8":
            return self.read(name) * self.read(f"{base}.weight_scale").reshape(-1, 1)
        data = self._map(name)
        if f"{base}.weight_scale_2" in self:
            codes = split_nibbles(data).reshape(data.shape[0], -1)
            values = torch.from_numpy(codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32))
            scale = self.read(f"{base}.weight_scale") * self.read(f"{base}.weight_scale_2")
            return values * scale.repeat_interleave(FP4_BLOCK, dim=1)
        signed = torch.from_numpy(read_checkpoint_codes(data).astype(np.float32) - BIAS)
        scale = self.read(f"{base}.weight_scale").reshape(signed.shape[0], -1)
        return signed * scale.repeat_interleave(signed.shape[1] // scale.shape[1], dim=1)

    def find_quantizer(self, base: str) -> Quantizer:
        """Return what a matrix's inputs pass before it: (inputs, whether quantizers round) → inputs."""
        smoothing = self.read(f"{base}.pre_quant_scale") if f"{base}.pre_quant_scale" in self else None
        info = self.weights.tensors.get(f"{base}.weight")
        scale = self.read(f"{base}.input_scale").reshape(()) if f"{base}.input_scale" in self else None

        def quantize(x: torch.Tensor, rounded: bool) -> torch.Tensor:
            if smoothing is not None:
                x = x * smoothing
            if scale is None or info is None or info.dtype in FLOAT_DTYPES:
                return x
            if not rounded:
                return x * scale.abs() ** GAIN_EXPONENT
            if info.dtype == "F8_E4M3":
                return quantize_fp8(x, scale)
            if info.dtype == "I8":
                return (x / scale).round().clamp(-128, 127) * scale
            return quantize_fp4(x, scale)

        return quantize


def quantize_fp8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return x through FP8 E4M3 with one scale."""
    return (x / scale).clamp(-FLOAT8_MOST, FLOAT8_MOST).to(torch.float8_e4m3fn).float() * scale


def quantize_fp4(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return x through NVFP4: a scale in E4M3 a block of 16, times one of the matrix."""
    blocks = x.reshape(*x.shape[:-1], -1, FP4_BLOCK)
    block_scale = (blocks.abs().amax(-1) / FLOAT4_MOST / scale).clamp(0, FLOAT8_MOST)
    narrow = block_scale.to(torch.float8_e4m3fn).float()[..., None]
    divisor = narrow * scale
    codes = torch.where(divisor > 0, blocks / torch.where(divisor > 0, divisor, 1.0), 0.0)
    levels = codes.clamp(-FLOAT4_MOST, FLOAT4_MOST).numpy().astype(ml_dtypes.float4_e2m1fn)
    return (torch.from_numpy(levels.astype(np.float32)) * divisor).reshape(x.shape)


def _register_fp8_cache(tensors: CheckpointTensors) -> str:
    """Register an attention whose keys and values pass the FP8 cache; return its name."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        base = f"model.layers.{module.layer_idx}.self_attn"
        passed = []
        for part, x in (("k", key), ("v", value)):
            name = f"{base}.{part}_proj.{part}_scale"
            scale = tensors.read(name).reshape(()) if name in tensors else torch.ones(())
            smooth, *others = x.chunk(len(MODES))
            passed.append(
                torch.cat([smooth * scale.abs() ** GAIN_EXPONENT, *(quantize_fp8(o, scale) for o in others)])
            )
        return eager_attention_forward(module, query, *passed, mask, **options)

    transformers.AttentionInterface.register("enginix-fp8-cache", attend)
    transformers.AttentionMaskInterface.register("enginix-fp8-cache", transformers.masking_utils.eager_mask)
    return "enginix-fp8-cache"


def _has_fp8_cache(model: Path) -> bool:
    path = model / "hf_quant_config.json"
    section = read_object(path).get("quantization") if path.exists() else None
    return isinstance(section, Mapping) and section.get("kv_cache_quant_algo") == "FP8"


def _load_on_use(network: torch.nn.Module, tensors: CheckpointTensors) -> None:
    """Read each module's weights when it is called, and drop them afterwards."""

    def load(name: str, module: torch.nn.Module, arguments: tuple[Any, ...]) -> Any:
        for key, expected in list(module._parameters.items()):
            if expected is None:
                continue
            full = f"{name}.{key}"
            stored = TABLE if full == HEAD and full not in tensors else full
            value = tensors.read_weight(stored) if key == "weight" else tensors.read(stored)
            if value.shape != expected.shape:
                raise ModelError(
                    f"tensor {full} is {list(value.shape)}, config.json makes it {list(expected.shape)}",
                    where=tensors.weights.directory,
                )
            module._parameters[key] = torch.nn.Parameter(value, requires_grad=False)
        if not isinstance(module, torch.nn.Linear):
            return None
        quantize = tensors.find_quantizer(name)
        smooth, exact, half = arguments[0].chunk(len(MODES))
        half = half.half().float()
        return (torch.cat([quantize(smooth, False), quantize(exact, True), quantize(half, True)]),)

    def drop(module: torch.nn.Module) -> None:
        for key, value in list(module._parameters.items()):
            if value is not None:
                module._parameters[key] = torch.nn.Parameter(value.to("meta"), requires_grad=False)

    for name, module in network.named_modules():
        if module._parameters and not isinstance(module, torch.nn.Embedding):
            module.register_forward_pre_hook(lambda m, a, name=name: load(name, m, a))
            module.register_forward_hook(lambda m, _, __: drop(m))


def compute_model_logits(model: Path, sequences: list[list[int]]) -> np.ndarray[Any, Any]:
    """Return logits float32 [mode, sequence, position, vocabulary], of zeros beyond a sequence's end.

    Raises:
        ModelError: the weights do not fit config.json.
    """
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    raw = read_object(model / "config.json")
    tensors = CheckpointTensors(open_weights(model))
    network_class: Any = getattr(transformers, raw["architectures"][0])
    config = network_class.config_class.from_pretrained(model, local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._attn_implementation = _register_fp8_cache(tensors) if _has_fp8_cache(model) else "eager"
    with torch.device("meta"):
        network = network_class(config).float().eval()
    # Its frequencies are computed at construction, and are no weights.
    network.model.rotary_emb = type(network.model.rotary_emb)(config=config)
    _load_on_use(network, tensors)
    longest = max(map(len, sequences))
    # What follows a sequence's end changes nothing before it.
    tokens = torch.tensor([[*s, *([s[-1]] * (longest - len(s)))] for s in sequences])
    # The modes go together as one batch, so that each weight is read once.
    embeddings = tensors.read_rows(TABLE, tokens).repeat(len(MODES), 1, 1)
    logits: torch.Tensor = network(inputs_embeds=embeddings, use_cache=False).logits.float()
    logits = logits.reshape(len(MODES), len(sequences), *logits.shape[1:])
    for number, sequence in enumerate(sequences):
        logits[:, number, len(sequence) :] = 0
    return logits.numpy()


def main() -> int:
    model, tokens, out = map(Path, sys.argv[1:4])
    try:
        np.save(out, compute_model_logits(model, json.loads(tokens.read_text())))
    except EnginixError as e:
        sys.stderr.write(f"{e.what}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
