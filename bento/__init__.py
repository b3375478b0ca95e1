"""Serving and batch inference: onnxruntime, BentoML and rasterio; never torch.

Neither calls home from here, unless the operator says so (docs/security.md).
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is first imported
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
