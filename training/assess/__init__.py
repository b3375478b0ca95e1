"""What a model file is worth: accuracy, calibration, prediction sets, strangers and robustness, measured on a pack."""
