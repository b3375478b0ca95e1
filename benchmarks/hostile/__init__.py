"""Hostile uploads and requests, made from sound ones: each is decided by a seed and a number, to be made
again."""
