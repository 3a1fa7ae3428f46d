"""What a model is, told from its configuration and its safetensors headers alone."""

from enginix.inspect.description import Description, describe
from enginix.inspect.skeleton import Model, open_model

__all__ = ["Description", "Model", "describe", "open_model"]
