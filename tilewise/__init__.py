"""Classify Sentinel-2 tiles and scenes."""
