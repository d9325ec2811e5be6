"""Compose a guardrail, a router and several models behind one ingress."""
