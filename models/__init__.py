"""Networks, and the one file they become. Only `models.modelfile` and `models.pretrained` are free of torch."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is first imported: it would call home
