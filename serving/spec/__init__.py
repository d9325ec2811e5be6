"""Describe a service: strict, frozen specifications."""
