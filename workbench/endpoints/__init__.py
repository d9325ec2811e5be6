"""Where requests are sent: a deployed service or a remote URL."""
