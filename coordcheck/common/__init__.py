"""What every wing stands on: errors, texts that are safe to print, the process around a check. Without torch."""
