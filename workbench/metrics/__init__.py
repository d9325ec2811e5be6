"""Define every metric exactly once."""
