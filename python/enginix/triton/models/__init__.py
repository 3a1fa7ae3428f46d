"""The Python models of a repository of kind ``reference``, importable and testable without Triton.

Triton's Python backend loads ``<model>/1/model.py``; that file is a thin shim (``shims/model.py.txt``)
around the classes here. preprocessing and postprocessing import NumPy and tokenizers only, so that they
start fast.
"""
