"""Engines of kind ``rtx``: a checkpoint built by TensorRT for RTX, whose builder needs no GPU."""
