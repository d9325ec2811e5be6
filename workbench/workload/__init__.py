"""Describe what is sent and when."""
