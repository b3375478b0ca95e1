"""Tiles, bands, radiometry, errors: the types that everything else uses. Free of torch."""
