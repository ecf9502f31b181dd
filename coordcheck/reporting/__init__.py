"""What a person holds: text, figures, page, JSON, the lines of CI systems. Without torch."""
