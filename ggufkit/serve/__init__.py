"""The server: `engine/` runs models for many at once and knows nothing of HTTP."""
