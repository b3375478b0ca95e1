"""Training, evaluation, tracking and export: `python -m training`."""
