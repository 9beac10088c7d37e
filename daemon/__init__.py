"""The daemon: sockets, TLS, disk, sessions. Everything with a clock or a side effect."""
