"""Read, check and re-encode the bodies of requests; imports nothing of the gate itself."""
