"""From verdict to µP: rules from a diagnosis, applied to any model and its optimizer, and diagnosed again."""
