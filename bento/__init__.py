"""Serving and batch inference: onnxruntime, BentoML and rasterio; never torch."""
