"""The tiny trained model, converted once a session."""

from tiny_model import checkpoint, model, one_thread

__all__ = ["checkpoint", "model", "one_thread"]
