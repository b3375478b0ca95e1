"""Reading, checking and packing Sentinel-2 tiles. Only `datasets.module` and `datasets.augment` know torch."""
