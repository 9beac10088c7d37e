"""mpcctl: speaks the daemon's control API and nothing else."""
