"""Rotary position embedding and its scalings, by their papers' formulas and TensorRT-LLM's parameters.

The configuration's scaling has every key, with the loader's defaults filled in: if an engine would rotate
differently than the model, the executor does so, too.
"""

from __future__ import annotations

import math

import torch

from enginix.reference.decoder_form import compute_alibi_slopes
from enginix.reference.executor_config import ExecutorConfig


def _base_frequencies(base: float, dim: int) -> torch.Tensor:
    return 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _compute_yarn(config: ExecutorConfig, inverse: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Compute YaRN (arXiv 2309.00071): fast-turning dimensions stay, slow ones are interpolated."""
    scaling, dim = config.rotary_scaling or {}, config.rotary_dim
    factor = float(scaling["factor"])
    original = float(scaling["original_max_position_embeddings"])

    def turns_at(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.rotary_base))

    low, high = math.floor(turns_at(scaling["beta_fast"])), math.ceil(turns_at(scaling["beta_slow"]))
    low, high = max(low, 0), min(high, dim - 1)
    span = high - low if high != low else 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    frequencies: torch.Tensor = inverse / factor * ramp + inverse * (1 - ramp)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    return frequencies, magnitude(scaling["mscale"]) / magnitude(scaling["mscale_all_dim"])


def _compute_llama3(config: ExecutorConfig, inverse: torch.Tensor) -> torch.Tensor:
    """Compute Llama 3.1's scaling: long wavelengths are divided by the factor, short ones kept."""
    scaling = config.rotary_scaling or {}
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = scaling["original_max_position_embeddings"] * inverse / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    scaled: torch.Tensor = inverse / factor * (1 - smooth) + inverse * smooth
    return scaled


class RopeTables:
    """Rotation tables.

    The scalings ``dynamic`` and ``longrope`` depend on the length of the sequence. As in Hugging Face models,
    the tables follow the length at the time of the step; keys in the cache keep their first rotation.

    Attributes:
        slopes: of ALiBi, float32 [heads]; None without it.
    """

    def score_bias(self, length: int) -> torch.Tensor | None:
        """Return what ALiBi adds to scores over ``length`` keys, float32 [kv_heads, group, length].

        The distance's other end, the query's position, adds the same to a whole row and changes nothing.
        """
        if self.slopes is None:
            return None
        positions = torch.arange(length, device=self.device, dtype=torch.float32)
        return (self.slopes[:, None] * positions).view(self.config.kv_heads, -1, length)

    def __init__(self, config: ExecutorConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.slopes: torch.Tensor | None = None
        if config.form.positions == "alibi":
            slopes = compute_alibi_slopes(config.form, config.heads, config.head_size)
            self.slopes = torch.tensor(slopes, device=device)
        self._kind = (config.rotary_scaling or {}).get("rope_type", "default")
        self._fixed: tuple[torch.Tensor, float] | None = None
        if self._kind not in ("dynamic", "longrope"):
            inverse, attention = self.frequencies(0)
            self._fixed = self._repeat_frequencies(inverse), attention

    @property
    def depends_on_length(self) -> bool:
        """Return whether a rotation depends on the length of its sequence, not on the position alone."""
        return self._fixed is None

    def frequencies(self, length: int) -> tuple[torch.Tensor, float]:
        """Return inverse frequencies float32 [rotary_dim / 2], and the factor on cosine and sine.

        Args:
            length: of the whole sequence so far; only dynamic and longrope use it.
        """
        config = self.config
        scaling, dim = config.rotary_scaling or {}, config.rotary_dim
        inverse = _base_frequencies(config.rotary_base, dim)
        match self._kind:
            case "linear":
                return inverse / float(scaling["factor"]), 1.0
            case "llama3":
                return _compute_llama3(config, inverse), 1.0
            case "yarn":
                return _compute_yarn(config, inverse)
            case "dynamic":
                factor, trained = float(scaling["factor"]), config.max_position_embeddings
                stretch = factor * max(length, trained) / trained - (factor - 1)
                base = config.rotary_base * (scaling["alpha"] * stretch) ** (dim / (dim - 2))
                return _base_frequencies(base, dim), 1.0
            case "longrope":
                original = scaling["original_max_position_embeddings"]
                factors = scaling["long_factor" if length > original else "short_factor"]
                ratio = config.max_position_embeddings / original
                attention = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
                return inverse / torch.tensor(factors, dtype=torch.float32), attention
        return inverse, 1.0

    def tables(self, positions: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine float32 [N, 1, rotary_dim] for N tokens; a pair's first sine is negative.

        Args:
            positions: int64 [N].
            lengths: length of the sequence that each token belongs to, [N] or one for all.
        """
        if self._fixed is not None:
            inverse, attention = self._fixed
        elif len(set(lengths)) == 1:
            inverse, attention = self.frequencies(lengths[0])
            inverse = self._repeat_frequencies(inverse)
        else:
            frequencies_by_length = {length: self.frequencies(length) for length in set(lengths)}
            attention = frequencies_by_length[lengths[0]][1]
            inverse = self._repeat_frequencies(
                torch.stack([frequencies_by_length[length][0] for length in lengths])
            )
        angles = (positions[:, None] * inverse)[:, None, :]
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if attention == 1.0 else (cos * attention, sin * attention)

    def _repeat_frequencies(self, inverse: torch.Tensor) -> torch.Tensor:
        """Return a frequency a number, [..., rotary_dim]; a pair's first one and its sine are negative."""
        if self.config.form.positions == "pairs":
            return torch.stack([-inverse, inverse], -1).flatten(-2).to(self.device)
        return torch.cat([-inverse, inverse], -1).to(self.device)


def rotate_heads(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, *, pairs: bool = False
) -> None:
    """Rotate the first ``rotary_dim`` of x [N, heads, size] in float32, to out.

    Halves turn against each other (GPT-NeoX), or with ``pairs`` neighbours (GPT-J).
    """
    dim = cos.shape[-1]
    turning = x[..., :dim]
    shape = (*turning.shape[:-1], *((dim // 2, 2) if pairs else (2, dim // 2)))
    exchanged = turning.view(shape).flip(-1 if pairs else -2).view(turning.shape)
    # Products with float32 are float32; each pass over the numbers counts on a GPU.
    torch.addcmul(turning * cos, exchanged, sin, out=out[..., :dim])
    if out is not x and x.shape[-1] != dim:
        out[..., dim:] = x[..., dim:]
