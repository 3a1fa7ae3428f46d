"""Hugging Face model in, served TensorRT-LLM deployment out; every link pinned and checked."""

__version__ = "0.1.0"
