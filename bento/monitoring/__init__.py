"""Drift, logs, traces and the prediction log."""
