"""The HTTP API: routes, request bodies, responses, API keys, limits, and their OpenAPI document."""
