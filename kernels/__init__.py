"""Numba kernels: arrays in, arrays out. They know no party, no message, no clock."""
