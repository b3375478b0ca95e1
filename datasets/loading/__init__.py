"""The Lightning data module, loaders and augmentation: the only part of datasets that imports torch."""
