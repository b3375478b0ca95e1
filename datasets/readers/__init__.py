"""Labelled tiles from files: GeoTIFF, EuroSAT, folders of classes."""
