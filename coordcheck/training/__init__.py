"""build, batch, loss -> runs: one after the other or in processes, kept in a folder, known by their settings."""
