"""What a daemon does with its units when it starts."""

from __future__ import annotations

from mpcd.daemon.offline.ledger import Ledger
from mpcd.daemon.offline.store import UnitStore


def recover(ledger: Ledger, store: UnitStore) -> None:
    """What a crash left half-made is burnt and removed. Does no harm when it is repeated or broken off."""
    ledger.burn_unfinished()
    ledger.burn(
        [unit for unit in ledger.all_ready() if not store.complete(unit)], "its files are missing, or of another format"
    )
    store.sweep(ledger.all_ready())
