"""Describe a model from its configuration and its safetensors headers alone."""

from enginix.inspect.description import ModelDescription, describe_model
from enginix.inspect.inspected_model import InspectedModel, open_model

__all__ = ["InspectedModel", "ModelDescription", "describe_model", "open_model"]
