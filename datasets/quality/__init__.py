"""Validation, label review, corrections and data cards."""
