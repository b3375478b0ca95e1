"""What is said over HTTP: routes, bodies, replies, and their description."""
