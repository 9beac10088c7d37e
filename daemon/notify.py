"""Telling systemd how the service is (sd_notify(3)): datagrams to $NOTIFY_SOCKET; nothing without one."""

from __future__ import annotations

import os
import socket


def notify(*fields: str) -> None:
    """For instance ``notify("READY=1", "STATUS=listening")``."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        try:
            out.connect(name)
            out.sendall("\n".join(fields).encode())
        except OSError:
            pass  # the service manager went away; the service need not
