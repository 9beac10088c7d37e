"""Model owner's side: from a PyTorch model to an integer network."""
