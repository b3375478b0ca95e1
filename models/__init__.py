"""Networks, and the one file they become. Free of torch: `modelfile`, `precision`, `pretrained`."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is first imported: it would call home
