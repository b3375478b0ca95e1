"""Tiles, bands, radiometry, errors: the forms that everything else is written in. Free of torch."""
