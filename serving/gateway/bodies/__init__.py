"""The bodies of requests: read, checked against the known fields and limits, and re-encoded."""
