"""Authenticate, check, limit and meter every request before it reaches a model."""
