"""Export of model files: fp32 and INT8."""
