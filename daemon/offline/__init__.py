"""The offline phase: making units of correlated randomness, keeping them, and using none twice."""
