"""The network of a checkpoint: described for NVIDIA's builder, and executed on a CPU."""
