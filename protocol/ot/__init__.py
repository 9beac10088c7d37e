"""Oblivious transfer: base OT, extension, and what the online phase eats."""
