"""AUROC, intervals and the report of a session."""
