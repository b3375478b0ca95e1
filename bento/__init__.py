"""Serving and batch inference: onnxruntime, BentoML and rasterio; never torch."""

import os

os.environ.setdefault(
    "ORT_DISABLE_TELEMETRY", "1"
)  # read when onnxruntime is first imported: it would call home
