"""Post-training quantization by NVIDIA ModelOpt: calibration data, formats, the result and its check."""
