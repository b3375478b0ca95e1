"""Training, evaluation, tracking and export: `tilewise train`."""
