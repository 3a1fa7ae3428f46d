"""The tiny trained model, converted once a session."""

from tiny_model import checkpoint, little_material, model, one_thread

__all__ = ["checkpoint", "little_material", "model", "one_thread"]
