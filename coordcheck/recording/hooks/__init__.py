"""How a model is looked into without changing it: hooks, modes, wrappers, random and module state."""
