"""Check the text of requests and responses."""
