"""The two-party protocols, sans-IO: one file per figure, effects out, results in."""
