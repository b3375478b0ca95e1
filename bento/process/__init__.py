"""What one serving process works with: batches, models and their releases, scenes and tasks."""
