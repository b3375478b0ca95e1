"""Measuring networks and model files."""
