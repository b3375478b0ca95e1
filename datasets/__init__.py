"""Reading, checking and packing Sentinel-2 tiles. Only the modules `module` and `augment` know torch."""
