"""Measuring on this machine and this link what mpcd takes: ``python -m mpcd.daemon.bench``, behind ``mpcctl bench``.

Two processes, one a party, over the daemon's own TLS connection and driver. Everything measured is what the daemon
runs; only the images, the weights and, for single steps, the shares are random.
"""
