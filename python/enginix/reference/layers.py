"""The transformer's layers on packed tokens [N, hidden], which may belong to several sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch.nn.functional import gelu, layer_norm, relu, rms_norm, silu

from enginix.errors import CheckpointError
from enginix.reference import layout
from enginix.reference.executor_config import ExecutorConfig, ExpertsConfig
from enginix.reference.linear import KV_CACHE, LinearOperation, add_product, join_linears
from enginix.reference.linear import load_linear as load_linear
from enginix.reference.quantization import REBUILD
from enginix.reference.rope import rotate_heads
from enginix.reference.weights import MergedWeights

# Up to this number of rows an expert computes every row, and rows of other experts are dropped: the shape of
# its product, and so every bit of a row, does not depend on the rest of the batch.
DENSE_EXPERT_ROWS = 64


class ForwardStep(Protocol):
    """One forward step's view of positions and cache; it computes the attention."""

    cos: torch.Tensor
    sin: torch.Tensor
    positions: torch.Tensor

    def attend(self, layer: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """q [N, heads, size], kv [N, 2 kv_heads, size] with keys first → [N, heads, size]."""
        ...


class RmsNorm:
    """RMS normalisation, computed in float32."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        self.weight, self.epsilon = weight, epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class LayerNorm:
    """Normalisation by mean and variance; the bias may be missing."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, epsilon: float) -> None:
        self.weight, self.bias, self.epsilon = weight, bias, epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


def _square_relu(x: torch.Tensor) -> torch.Tensor:
    return relu(x).square()


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu,
    "gelu": partial(gelu, approximate="tanh"),
    "relu": relu,
    "squared_relu": _square_relu,
}


class LayerBuilder:
    """Loads the layers of one model to a device in one compute dtype."""

    def __init__(
        self, weights: MergedWeights, device: torch.device, dtype: torch.dtype, fp8_products: bool
    ) -> None:
        self.weights, self.config, self.device, self.dtype = weights, weights.config, device, dtype
        self.linears: list[LinearOperation] = []
        self.fp8_products = fp8_products

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self.weights.get(name).to(self.device, dtype or self.dtype)

    def norm(self, name: str) -> RmsNorm | LayerNorm:
        form = self.config.form
        if form.norm == "layer":
            bias = self.tensor(f"{name}.bias") if form.norm_bias else None
            return LayerNorm(self.tensor(f"{name}.weight"), bias, self.config.norm_epsilon)
        return RmsNorm(self.tensor(f"{name}.weight"), self.config.norm_epsilon)

    def linear(self, spec: layout.LinearSpec) -> LinearOperation:
        operation = load_linear(spec, self.weights, self.device, self.dtype, fp8_products=self.fp8_products)
        self.linears.append(operation)
        return operation


class Attention:
    """Grouped-query attention with rotary positions; Qwen3 normalises queries and keys by head.

    With a quantized cache every key and value is rounded before it is used, also within a prompt: as paged
    and chunked prompts do, and as ModelOpt calibrates.
    """

    def __init__(self, build: LayerBuilder, layer: int) -> None:
        self.config: ExecutorConfig = build.config
        self.layer = layer
        self.qkv, self.dense = map(build.linear, layout.attention_linears(build.config, layer))
        self.norm_weight: torch.Tensor | None = None
        if build.config.family == "qwen3":
            prefix = layout.layer_name(layer, "attention")
            norm_heads = (("q", build.config.heads), ("k", build.config.kv_heads))
            self.norm_weight = torch.cat(
                [build.tensor(f"{prefix}.{x}_layernorm.weight").expand(count, -1) for x, count in norm_heads]
            ).float()
        self.round_kv = KV_CACHE[build.config.quantization.kv_cache]
        if self.round_kv is not None:
            name = layout.layer_name(layer, "attention.kv_cache_scaling_factor")
            self.kv_scale = build.tensor(name, torch.float32)
            if not bool((self.kv_scale > 0).all()):
                raise CheckpointError("is not positive", where=build.weights.where(name), fix=REBUILD)

    def __call__(self, x: torch.Tensor, step: ForwardStep) -> torch.Tensor:
        """Return the attention's output before its output projection ``dense``."""
        config = self.config
        heads = self.qkv(x).view(x.shape[0], -1, config.head_size)
        # Queries and keys are neighbours: one normalisation and one rotation serve both.
        both = rotated = heads[:, : config.heads + config.kv_heads]
        if self.norm_weight is not None:
            wide = rms_norm(both.float(), both.shape[-1:], None, config.norm_epsilon)
            both = torch.mul(wide, self.norm_weight, out=torch.empty_like(both))
        if config.form.positions in ("halves", "pairs"):
            rotate_heads(both, step.cos, step.sin, rotated, pairs=config.form.positions == "pairs")
        q, kv = heads[:, : config.heads], heads[:, config.heads :]
        if config.form.score_factor != 1.0:
            q = q * config.form.score_factor
        if self.round_kv is not None:
            kv.copy_(self.round_kv(kv, self.kv_scale))
        return step.attend(self.layer, q, kv).reshape(x.shape[0], -1)


class Mlp:
    """proj(activation(fc x)), or proj(activation(fc x) · gate x).

    TensorRT-LLM's fc is Hugging Face's gate_proj, its gate is up_proj.

    Args:
        parts: fc and proj, or fc, gate and proj.
    """

    def __init__(self, parts: Sequence[LinearOperation], activation: str) -> None:
        self.fc, self.proj, self.activation = parts[0], parts[-1], ACTIVATIONS[activation]
        self.gate = parts[1] if len(parts) == 3 else None
        self.fc_and_gate = None if self.gate is None else join_linears(self.fc, self.gate)

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input of ``proj``."""
        if self.fc_and_gate is not None:
            fc, gate = self.fc_and_gate(x).chunk(2, -1)
            return self.activation(fc) * gate
        inner = self.activation(self.fc(x))
        return inner if self.gate is None else inner * self.gate(x)


class FusedMlp:
    """proj(silu(second half) · first half) of one fused matrix: [up; gate]."""

    def __init__(self, fc: LinearOperation, proj: LinearOperation) -> None:
        self.fc, self.proj = fc, proj

    def activate(self, x: torch.Tensor, expert: int | None = None) -> torch.Tensor:
        """Return the input of ``proj``."""
        up, gate = self.fc(x, expert).chunk(2, -1)
        return silu(gate) * up

    def __call__(self, x: torch.Tensor, expert: int | None = None) -> torch.Tensor:
        return self.proj(self.activate(x, expert), expert)


class MixtureOfExperts:
    """Each token goes to its top-k experts; a shared expert, where there is one, sees every token."""

    def __init__(self, build: LayerBuilder, layer: int, experts: ExpertsConfig) -> None:
        self.sizes = experts
        fc, proj, *shared = map(build.linear, layout.mlp_linears(build.config, layer))
        self.experts = FusedMlp(fc, proj)
        self.router = build.tensor(layout.layer_name(layer, "mlp.router.weight"), torch.float32)
        self.shared: FusedMlp | None = None
        if shared:
            self.shared = FusedMlp(shared[0], shared[1])
            self.shared_gate = build.tensor(layout.layer_name(layer, "mlp.shared_expert_gate.weight"))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        probabilities = torch.nn.functional.linear(x.float(), self.router).softmax(-1)
        share, chosen = probabilities.topk(self.sizes.top_k, -1)
        if self.sizes.renormalize:
            share = share / share.sum(-1, keepdim=True)
        share = torch.zeros_like(probabilities).scatter_(1, chosen, share).to(x.dtype)
        out = torch.zeros_like(x)
        for expert in torch.unique(chosen).tolist():
            weight = share[:, expert, None]
            if x.shape[0] <= DENSE_EXPERT_ROWS:
                y = self.experts(x, expert)
                out += torch.where(weight > 0, y * weight, torch.zeros_like(y))
            else:
                rows = weight[:, 0].nonzero()[:, 0]
                out.index_add_(0, rows, self.experts(x[rows], expert) * weight[rows])
        if self.shared:
            gate = torch.nn.functional.linear(x, self.shared_gate).sigmoid()
            out = out + gate * self.shared(x)
        return out


class DecoderLayer:
    """One decoder layer: attention and feed-forward, each normalised before and added after."""

    def __init__(self, build: LayerBuilder, layer: int) -> None:
        self.input_norm = build.norm(layout.layer_name(layer, "input_layernorm"))
        self.attention = Attention(build, layer)
        config, self.form = build.config, build.config.form
        shared = self.form.mlp_norm == "input_layernorm"
        self.post_norm = (
            self.input_norm if shared else build.norm(layout.layer_name(layer, self.form.mlp_norm))
        )
        self.output_norms: tuple[RmsNorm | LayerNorm, RmsNorm | LayerNorm] | None = None
        if self.form.output_norms:
            after = (layout.layer_name(layer, n) for n in ("post_layernorm", "post_feedforward_layernorm"))
            self.output_norms = (build.norm(next(after)), build.norm(next(after)))
        self.mlp: Mlp | FusedMlp | MixtureOfExperts
        if config.experts is not None:
            self.mlp = MixtureOfExperts(build, layer, config.experts)
        else:
            parts = [build.linear(spec) for spec in layout.mlp_linears(config, layer)]
            is_fused = config.family == "phi3"
            self.mlp = FusedMlp(*parts) if is_fused else Mlp(parts, self.form.activation)

    def __call__(self, x: torch.Tensor, step: ForwardStep) -> torch.Tensor:
        """Return the layer's output; on a GPU x becomes it."""
        attention, mlp = self.attention, self.mlp
        if isinstance(mlp, MixtureOfExperts):
            x = add_product(x, attention.dense, attention(self.input_norm(x), step))
            return x + mlp(self.post_norm(x))
        if self.output_norms is not None:
            after_attention, after_mlp = self.output_norms
            x = x + after_attention(attention.dense(attention(self.input_norm(x), step)))
            return x + after_mlp(mlp.proj(mlp.activate(self.post_norm(x))))
        if (factor := self.form.residual_factor) != 1.0:
            x = x + factor * attention.dense(attention(self.input_norm(x), step))
            return x + factor * mlp.proj(mlp.activate(self.post_norm(x)))
        if self.form.parallel:
            inner = mlp.activate(self.post_norm(x))
            x = add_product(x, attention.dense, attention(self.input_norm(x), step))
            return add_product(x, mlp.proj, inner)
        x = add_product(x, attention.dense, attention(self.input_norm(x), step))
        return add_product(x, mlp.proj, mlp.activate(self.post_norm(x)))
