"""The classifier: preprocessing, backbone, head, calibration, outlier score (torch)."""
