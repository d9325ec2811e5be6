"""Price the replica-seconds of a fleet; pure functions over samples and prices."""
