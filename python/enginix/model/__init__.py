"""Hugging Face model directories: configuration, quantization, headers. No weight is read here."""

from enginix.model.model_config import ModelConfig, ModelExperts
from enginix.model.quantization import ModelQuantization
from enginix.model.rope import ModelRope
from enginix.model.safetensors import ModelWeights, SafetensorsHeader, TensorInfo, open_weights, read_header

__all__ = [
    "ModelConfig",
    "ModelExperts",
    "ModelQuantization",
    "ModelRope",
    "ModelWeights",
    "SafetensorsHeader",
    "TensorInfo",
    "open_weights",
    "read_header",
]
