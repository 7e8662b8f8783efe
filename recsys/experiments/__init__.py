"""Online experiments: who gets which arm, what it did to people, and what a log says of a policy never shown."""
