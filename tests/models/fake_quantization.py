"""Number formats imitated while a model trains, so that it learns what survives them.

Each matrix of a model's layers computes with weights and inputs rounded to a format; gradients pass as if
they were not. The largest inputs come from a calibration text, as ModelOpt's do: what is larger elsewhere
saturates.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

Tensor = torch.Tensor
PLAIN = "plain"
FORMATS = ("fp8", "int8", "int4", "w4a8", "nvfp4")
FP8_MOST, FP4_MOST = 448.0, 6.0
GROUP, BLOCK = 128, 16
TINY = 1e-12


def fp8(x: Tensor, most: Tensor) -> Tensor:
    """E4M3 with one scale: ``most`` is the largest that does not saturate."""
    scale = most.clamp(min=TINY) / FP8_MOST
    return (x / scale).clamp(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn).to(x.dtype) * scale


def integers(x: Tensor, scale: Tensor, most: int) -> Tensor:
    """Whole multiples of ``scale``, at most ``most`` of them."""
    scale = scale.clamp(min=TINY)
    return (x / scale).round().clamp(-most, most) * scale


def int4(weight: Tensor) -> Tensor:
    """15 levels a group of 128 inputs [out, in]."""
    groups = weight.unflatten(-1, (-1, GROUP))
    return integers(groups, groups.abs().amax(-1, keepdim=True) / 7, 7).flatten(-2)


def nvfp4(x: Tensor, most: Tensor) -> Tensor:
    """E2M1 with an E4M3 scale a block of 16, and one scale over ``most``."""
    blocks = x.unflatten(-1, (-1, BLOCK))
    over = most.clamp(min=TINY) / (FP4_MOST * FP8_MOST)
    scale = (blocks.abs().amax(-1, keepdim=True) / FP4_MOST / over).clamp(max=FP8_MOST)
    scale = (scale.to(torch.float8_e4m3fn).to(x.dtype) * over).clamp(min=TINY)
    size = (blocks / scale).abs().clamp(max=FP4_MOST)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return ((size / step).round() * step * scale * blocks.sign()).flatten(-2)


class Imitation:
    """Makes a model's layers compute in ``format``: one of :data:`FORMATS`, or :data:`PLAIN`."""

    def __init__(self, model: Any) -> None:
        self.model, self.format, self.calibrating = model, PLAIN, False
        self.largest: dict[int, Tensor] = {}  # by matrix: of each input, over the calibration text
        for layer in model.model.layers:
            for module in layer.modules():
                if isinstance(module, torch.nn.Linear):
                    module.forward = partial(self._linear, module)  # type: ignore[method-assign]
            # Keys and values, as an FP8 cache holds them.
            layer.self_attn.k_norm.register_forward_hook(self._cached)
            layer.self_attn.v_proj.register_forward_hook(self._cached)

    @torch.no_grad()
    def calibrate(self, ids: Tensor) -> None:
        """Notes the largest inputs on a text [rows, length]."""
        before, self.format, self.calibrating = self.format, PLAIN, True
        self.model(ids, use_cache=False)
        self.format, self.calibrating = before, False

    def _linear(self, linear: Any, x: Tensor) -> Tensor:
        if self.calibrating:
            self.largest[id(linear)] = x.abs().flatten(0, -2).amax(0).float()
        weight = linear.weight
        if self.format != PLAIN:
            with torch.no_grad():
                rounded, inputs = self._rounded(weight.float(), x.float(), self.largest[id(linear)])
            weight = weight + (rounded - weight).detach()
            x = x + (inputs - x).detach()
        return torch.nn.functional.linear(x, weight)

    def _rounded(self, weight: Tensor, x: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        most = largest.amax()
        if self.format == "int8":  # SmoothQuant: each input over its largest, which its weights take
            smooth = torch.maximum(largest, most * 1e-4)
            scaled = weight * smooth
            rows = integers(scaled, scaled.abs().amax(-1, keepdim=True) / 127, 127)
            return rows / smooth, integers(x / smooth, torch.ones_like(most) / 127, 127) * smooth
        if self.format == "nvfp4":
            return nvfp4(weight, weight.abs().amax()), nvfp4(x, most)
        rounded = fp8(weight, weight.abs().amax()) if self.format == "fp8" else int4(weight)
        return rounded, x if self.format == "int4" else fp8(x, most)

    def _cached(self, module: Any, args: Any, out: Tensor) -> Tensor:
        if self.format != "fp8":
            return out
        with torch.no_grad():
            rounded = fp8(out.float(), out.abs().amax().float())
        return out + (rounded - out).detach()
