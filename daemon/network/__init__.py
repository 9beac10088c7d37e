"""The network of pinned peers: who we are, TLS, frames, calls, and a protocol driven over a connection."""
