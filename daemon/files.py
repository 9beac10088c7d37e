"""Small private files, written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from mpcd.daemon.errors import BadInput, MpcdError


class CannotWrite(MpcdError):
    """A file cannot be written."""

    code = "cannot_write"
    exit_status = 10

    @classmethod
    def of(cls, path: Path, error: OSError) -> CannotWrite:
        return cls(f"cannot write {path}: {error.strerror}", "check the disk's space and the folder's owner")


def write_private(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Put ``data`` into ``path``, readable by this user only, on the disk before this returns.

    Raises FileExistsError if ``replace`` is off and the file is there; CannotWrite naming the file otherwise.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(scratch, path)
            else:
                os.link(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise
    except OSError as error:
        raise CannotWrite.of(path, error) from error


def check_secret(path: Path, what: str, hint: str = "") -> None:
    """Raises BadInput if others than this user may read ``path``, which holds ``what``. Raises OSError.

    A file that another user owns, as systemd's credentials and what a site's PKI installs, may be for a group: its
    owner chose who is in that.
    """
    status = path.stat()
    allowed = 0o740 if status.st_uid != os.geteuid() else 0o700
    mode = status.st_mode & 0o777
    if mode & ~allowed:
        mend = f"run: chmod 600 {path}" + (f"; {hint}" if hint else "")
        raise BadInput(f"{path} holds {what} and can be read by others (mode {mode:o})", mend)


def make_private(folder: Path) -> list[str]:
    """Take from others what they may do in ``folder`` and with the files in it; what was open, in words."""
    found = []
    for path in (folder, *sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())):
        status = path.stat()
        if status.st_mode & 0o077 and status.st_uid == os.geteuid():
            path.chmod(status.st_mode & 0o700)
            found.append(f"{path} was open to others (mode {status.st_mode & 0o777:o}); it is closed now")
    return found
