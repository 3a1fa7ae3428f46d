"""Hugging Face model directories: configuration, quantization, headers. No weight is read here."""

from enginix.model.model_config import ModelConfig
from enginix.model.quantization import ModelQuantization
from enginix.model.rope import ModelRope
from enginix.model.safetensors import ModelWeights, TensorInfo, open_weights, read_header

__all__ = [
    "ModelConfig",
    "ModelQuantization",
    "ModelRope",
    "ModelWeights",
    "TensorInfo",
    "open_weights",
    "read_header",
]
