"""Hugging Face model directories: configuration, quantization, headers. No weight is read here."""

from enginix.model.config import Experts, ModelConfig
from enginix.model.quantization import ModelQuantization
from enginix.model.rope import Rope
from enginix.model.safetensors import Header, TensorInfo, Weights, open_weights, read_header

__all__ = [
    "Experts",
    "Header",
    "ModelConfig",
    "ModelQuantization",
    "Rope",
    "TensorInfo",
    "Weights",
    "open_weights",
    "read_header",
]
