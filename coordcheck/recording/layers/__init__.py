"""Every module's output, step by step."""
