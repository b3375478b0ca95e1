"""From a trained network to a model file and its INT8 sibling, and back."""
