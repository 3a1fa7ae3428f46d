"""Turn a Hugging Face model into a served TensorRT-LLM deployment, with every input pinned and checked."""

__version__ = "0.1.0"
