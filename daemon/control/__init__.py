"""The control API: what mpcctl asks over a unix socket (docs/control-api.md)."""
