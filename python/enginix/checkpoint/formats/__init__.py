"""Number formats, one module each: their tensors, how they are written, and how they are dequantized.

The scales of a KV cache belong to no matrix: ``convert.py`` writes them.
"""

from __future__ import annotations

from enginix.checkpoint.config import DTYPES, CheckpointConfig
from enginix.checkpoint.formats.base import Dequantized, NumberFormat, Spec
from enginix.checkpoint.formats.fp8 import Fp8, Fp8PerChannel
from enginix.checkpoint.formats.integer import Int4Awq, Int8SmoothQuant
from enginix.checkpoint.formats.nvfp4 import Nvfp4, Nvfp4ModelOpt
from enginix.checkpoint.formats.plain import UnquantizedFormat
from enginix.checkpoint.rank_modules import LinearModule, Module, SlicedTensor, VectorModule

__all__ = ["Dequantized", "NumberFormat", "Spec", "format_of", "list_module_tensors"]

# A KV cache's scale and its reciprocal.
KV_LEAVES = ("kv_cache_scaling_factor", "kv_cache_rcp_scaling_factor")

_FORMATS: dict[str | None, NumberFormat] = {
    None: UnquantizedFormat(),
    "FP8": Fp8(),
    "FP8_PER_CHANNEL_PER_TOKEN": Fp8PerChannel(),
    "NVFP4": Nvfp4(),
    "W4A16_AWQ": Int4Awq(activations=False),
    "W4A8_AWQ": Int4Awq(activations=True),
    "W8A8_SQ_PER_CHANNEL": Int8SmoothQuant(),
}
_MODELOPT_NVFP4 = Nvfp4ModelOpt()


def format_of(algorithm: str | None, nvfp4_form: str = "trtllm") -> NumberFormat:
    """Return the format of a matrix.

    Args:
        algorithm: a convertible key of number_formats.json, or None.
        nvfp4_form: ``trtllm`` or ``modelopt``, one of the two forms that the loader reads.

    Raises:
        KeyError: an algorithm that number_formats.json does not call convertible.
    """
    if algorithm == "NVFP4" and nvfp4_form == "modelopt":
        return _MODELOPT_NVFP4
    return _FORMATS[algorithm]


def list_module_tensors(
    module: Module, config: CheckpointConfig, algorithm: str | None, nvfp4_form: str
) -> Spec:
    """Return the tensors of a module as conversion writes them, by their whole names.

    Args:
        algorithm, nvfp4_form: of a matrix, as of :func:`format_of`.

    Raises:
        EnginixError: the format cannot hold the matrix.
    """
    dtype = DTYPES[config.dtype]
    if isinstance(module, VectorModule):
        return {module.tensor_name: (dtype, (module.size,))}
    if isinstance(module, SlicedTensor):
        return {module.name: (dtype, module.shape)}
    if isinstance(module, LinearModule):
        spec = format_of(algorithm, nvfp4_form).spec(module, config)
        return {f"{module.name}.{leaf}": row for leaf, row in spec.items()} | (
            {f"{module.name}.bias": (dtype, (module.out,))} if module.bias else {}
        )
    leaves = KV_LEAVES if config.quantization.kv_cache_quant_algo is not None else ()
    return {f"{module.name}.{leaf}": ("F32", (1,)) for leaf in leaves}
