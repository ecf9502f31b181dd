"""What a run's numbers depend on, in words and hashes."""
