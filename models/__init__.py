"""Networks and the model file; of these, serving imports `model_file` alone, which is free of torch."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported
