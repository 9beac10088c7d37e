"""What only the running daemon can tell: in a moment, for ``status``; and with a look at the peers, for ``doctor``."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

from mpcd.daemon.config import join_address, split_address
from mpcd.daemon.context import Context, aside
from mpcd.daemon.errors import MpcdError
from mpcd.daemon.network import authority
from mpcd.daemon.network.peers import Peer
from mpcd.daemon.operations import folder, machine
from mpcd.daemon.operations.asking import Answer, Asking
from mpcd.daemon.operations.checks import Check, of_error, ok, problem, warning
from mpcd.daemon.operations.pulse import Pulse
from mpcd.daemon.version import software_version

DNS_TIMEOUT = 5.0
CLOCKS_APART = 30.0  # seconds; logs and records of the two sides are compared
LOOP_LATE = 2.0
KEY_SOON = 7 * 86400.0  # seconds before an old key is given up


class Live:
    """Health and doctor of one daemon."""

    def __init__(self, context: Context, asking: Asking, pulse: Pulse) -> None:
        self._context = context
        self._asking = asking
        self._pulse = pulse

    # In a moment

    async def health(self) -> list[Check]:
        """One line each; cheap enough to be asked for all the time."""
        context = self._context
        policy, disk, certificates, ledger = await asyncio.gather(
            aside(folder.policy, context.paths),
            aside(folder.disk, context.paths, context.config),
            self._certificates(),
            self._ledger(),
        )
        return [
            self._kernels(),
            self._loop(),
            *self._peers(),
            *self._strangers(),
            policy,
            disk,
            certificates,
            *self._rotation(),
            ledger,
        ]

    def _kernels(self) -> Check:
        kernels = self._context.kernels
        if not kernels.ready.is_set():
            return ok("kernels", f"being compiled, {kernels.describe()['done'] / 10:.0f} %: the first time only")
        silent = self._pulse.kernels_silent
        if not self._pulse.well:
            return problem("kernels", f"their threads have not answered for {silent:.0f} s", "restart mpcd")
        return ok("kernels", "ready")

    def _loop(self) -> Check:
        lag = self._pulse.lag
        if lag > LOOP_LATE:
            return warning(
                "daemon",
                f"it was busy for {lag:.1f} s at a stretch within the last minute",
                "other programs may take its processor or disk; the log says where it was",
            )
        return ok("daemon", "answers")

    def _peers(self) -> list[Check]:
        net = self._context.net
        known = [(peer.name, net.status(peer.name)) for peer in self._context.peers.list()]
        if not known:
            return [ok("peers", "none; mpcctl peer add INVITE adds one")]
        bad = [
            warning("peers", f"{name} is not connected: {status.error}", status.hint or "mpcctl doctor says more")
            for name, status in known
            if status.error
        ]
        connected = sum(status.connected for _, status in known)
        return bad or [ok("peers", f"{connected} of {len(known)} connected")]

    def _strangers(self) -> list[Check]:
        context = self._context
        return [
            warning(
                "strangers",
                f"an unknown {s.name!r} (certificate {s.fingerprint[:16]}...) knocked from {s.address}",
                "to accept it, get its invite, compare the fingerprint, and run mpcctl peer add",
            )
            for s in context.net.strangers()
            if context.peers.find(s.fingerprint) is None
        ]

    def _audit(self) -> Check:
        return folder.audit_log(*self._context.audit.journal.verify())

    async def _certificates(self) -> Check:
        net = self._context.net
        theirs = {peer.name: net.status(peer.name).expires for peer in self._context.peers.list()}
        return await aside(folder.certificates, self._context.paths, self._context.config, theirs)

    def _rotation(self) -> list[Check]:
        """While peers have still to hear of a new key."""
        rotation = self._context.identity.rotation
        if rotation is None:
            return []
        who = ", ".join(peer.name for peer in self._context.peers.list() if peer.id in rotation.pending)
        until = authority.date(rotation.until)
        text = f"{who} did not hear of the new key yet; the old one is kept for that until {until}"
        if rotation.until - time.time() > KEY_SOON:
            return [ok("key", text)]
        return [warning("key", text, f"ask {who} to connect before, else they need this daemon's new invite")]

    async def _ledger(self) -> Check:
        reused = await aside(self._context.ledger.reuse_count)
        if reused:
            return problem("ledger", f"{reused} units were used twice", "stop using this daemon and tell its makers")
        return ok("ledger", "no unit was used twice")

    # With a look at everything

    async def doctor(self, peer: str | None) -> list[Check]:
        """Everything about this side and the peers, or this peer. Raises NotFound."""
        context = self._context
        peers = context.peers.list() if peer is None else (context.peers.get(peer),)
        here = [self._loop(), self._kernels(), self._port(), *self._strangers()]
        unit = await aside(machine.systemd)
        local = await aside(lambda: [*machine.checks(context.paths, context.config)])
        files = await aside(lambda: [*folder.checks(context.paths, context.config)])
        about = await asyncio.gather(*(self._about(one) for one in peers))
        none = [] if peers else self._peers()
        return [
            *here,
            *([unit] if unit else []),
            *local,
            *(check for check in files if check.name not in ("certificates", "audit log")),
            await self._certificates(),
            *self._rotation(),
            await aside(self._audit),
            *none,
            *(check for checks in about for check in checks),
        ]

    def _port(self) -> Check:
        context = self._context
        if not context.net.port:
            return ok("port", "none: this daemon only dials out")
        at = join_address(context.config.listen.host, context.net.port)
        if not context.config.advertise:
            return ok("port", f"listening on {at}; its invite names no address (advertise in mpcd.toml)")
        return ok("port", f"listening on {at}, advertised as {context.config.advertise}")

    async def _about(self, peer: Peer) -> list[Check]:
        name, status = peer.name, self._context.net.status(peer.name)
        found = await self._dns(peer) if peer.address else []
        if not status.connected:
            found.append(
                problem(
                    f"{name}: link",
                    status.error or "not connected yet",
                    status.hint or f"ask {name} whether their daemon runs",
                )
            )
            if peer.address:
                found.append(await self._outbound(peer))
            return found
        found.append(ok(f"{name}: link", f"connected, dialled by {'us' if status.dialled else 'them'}"))
        found.append(self._versions(name, status.software, status.digest))
        answer: Answer | None = None
        try:
            answer = await self._asking.ask(name)
        except MpcdError as error:
            found.append(
                ok(f"{name}: answers", "no: its version has no doctor to ask")
                if error.code == "unknown_method"
                else of_error(f"{name}: answers", error)
            )
        if not peer.address:
            found.append(ok(f"{name}: outbound", f"we have no address of it and wait for {name} to dial"))
        elif status.dialled:
            found.append(ok(f"{name}: outbound", "its address is reached: the link was dialled from here"))
        else:
            found.append(await self._outbound(peer))
        if answer is not None:
            found += [self._inbound(name, answer), _clock(name, answer)]
        return found

    def _versions(self, name: str, software: str, digest: str) -> Check:
        text = f"mpcd {software}"
        if digest != self._context.software:
            text += f" ({digest[:12]}), other software than here ({software_version()}, {self._context.software[:12]})"
            return ok(f"{name}: version", text)
        return ok(f"{name}: version", text + ", the same software as here")

    async def _dns(self, peer: Peer) -> list[Check]:
        host, _ = split_address(peer.address)
        title = f"{peer.name}: name"
        try:
            async with asyncio.timeout(DNS_TIMEOUT):
                rows: list[Any] = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError) as error:
            why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
            return [problem(title, f"{host} is not found: {why}", "check the name, and this machine's DNS resolver")]
        return [ok(title, f"{host} is {', '.join(sorted({row[4][0] for row in rows}))}")]

    async def _outbound(self, peer: Peer) -> Check:
        title = f"{peer.name}: outbound"
        try:
            await self._asking.reach(peer)
        except MpcdError as error:
            return of_error(title, error)
        return ok(title, f"{peer.address} is reached, and it is {peer.name}")

    def _inbound(self, name: str, answer: Answer) -> Check:
        title = f"{name}: inbound"
        if answer.reaches is None:
            return ok(title, f"{name} has no address of ours and waits for us to dial")
        if not answer.reaches:
            return warning(
                title,
                f"{name} cannot reach us at the address it has ({answer.why})",
                "the link stands all the same; for it to be made from both sides, open the port, or advertise another",
            )
        return ok(title, f"{name} reaches us")


def _clock(name: str, answer: Answer) -> Check:
    apart = f"{abs(answer.clock):.1f} s {'ahead of' if answer.clock > 0 else 'behind'} ours"
    if abs(answer.clock) - answer.uncertainty > CLOCKS_APART:
        return warning(f"{name}: clock", apart, "set the clock that is wrong: timedatectl set-ntp true")
    return ok(f"{name}: clock", apart)
