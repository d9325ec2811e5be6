"""Compose a guardrail, a model router and several models behind one ingress."""
