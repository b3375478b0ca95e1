"""What stands before the routes: connections, keys, bounds in time and size, headers."""
