"""Attributions: which pixels and bands drove an answer."""
