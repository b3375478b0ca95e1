"""Fine-tuning: a model file learns the classes of one's own tiles."""
