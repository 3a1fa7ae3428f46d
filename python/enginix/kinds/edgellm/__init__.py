"""TensorRT Edge-LLM: export on a CPU, checks on the export, engine on a GPU, server.

See docs/reference/edgellm.md.
"""
