"""The decisions: which step next, what to undo, how long to wait. Deterministic."""
