"""Training: the Lightning task, trainer, callbacks, transfer, calibration."""
