"""Packs: many tiles in one memory-mapped array, with splits, statistics and versions."""
