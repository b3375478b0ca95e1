"""What one serving process works with: batcher, admission, releases, tasks."""
