"""The embedded models and their paths."""
