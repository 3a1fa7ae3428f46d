"""The Python models of a repository, importable and testable without Triton.

Triton's Python backend loads ``<model>/1/model.py``; that file is a thin shim (``shims/``) around the
classes here.
Only ``tensorrt_llm`` imports PyTorch, so that ``ensemble`` starts fast.
"""
