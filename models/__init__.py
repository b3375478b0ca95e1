"""Networks, and the one file they become. Serving imports `modelfile` and `precision` alone, which know no torch."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is first imported: it would call home
