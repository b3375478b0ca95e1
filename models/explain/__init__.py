"""Explanations: the pixels and bands behind a prediction."""
