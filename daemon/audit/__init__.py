"""The audit log: who did what with which commitments, as a chain of hashes that an auditor can check without us."""
