"""HTTP: routes, bodies, replies, keys, limits, and their description in OpenAPI."""
