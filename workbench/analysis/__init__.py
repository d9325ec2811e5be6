"""Read saved runs and compute tables from them; nothing here sends a request."""
