"""What one run leaves: its record, and the folder of files that it is kept in. Without torch."""
