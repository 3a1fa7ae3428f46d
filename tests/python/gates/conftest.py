"""The tiny trained models, converted once a session."""

from tiny_model import checkpoint, model, one_thread, recalling

__all__ = ["checkpoint", "model", "one_thread", "recalling"]
