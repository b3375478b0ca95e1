"""Acquire tiles: fetch published archives, or generate synthetic ones."""
