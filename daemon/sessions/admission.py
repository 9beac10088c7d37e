"""Whether a session may go on: what its approval binds still holds, it has not expired, and the hours allow work."""

from __future__ import annotations

import time

from mpcd.daemon.context import Context
from mpcd.daemon.errors import Mismatch, MpcdError, NotFound
from mpcd.daemon.network.peers import Peer
from mpcd.daemon.sessions.binding import Binding
from mpcd.daemon.sessions.policy import NotNow, Policy
from mpcd.daemon.sessions.records import DATA_OWNER_ROLE, Session


class Expired(MpcdError):
    """The session has expired."""

    code = "expired"
    exit_status = 6
    shared = True


class PeerChanged(MpcdError):
    """The peer of this session is no longer known here."""

    code = "peer_changed"
    exit_status = 6
    shared = True


class Admission:
    """Asked by both parties before each piece of work. Reads the policy: not for the event loop's thread."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def check(self, session: Session) -> float:
        """Seconds that work on it may go on. Raises NotNow, PeerChanged, Mismatch."""
        self.check_peer(session)
        policy = self._context.policy
        left = policy.open_for()
        self._check_software(session, policy)
        if not session.terms.expires:
            return left
        remaining = session.terms.expires - time.time()
        if remaining <= 0:  # not yet its end: a clock that jumped may jump back
            raise NotNow(f"{expired(session)}, by the clock of the {session.role}")
        return min(left, remaining)

    def check_peer(self, session: Session) -> None:
        """Raises PeerChanged."""
        try:
            peer = self._context.peers.get(session.peer)
        except NotFound:
            raise PeerChanged("the peer of this session was removed", "add it again and start a new session") from None
        if session.peer_id and peer.id != session.peer_id:
            raise PeerChanged(
                "the peer of this session was removed, and another added under its name", "start a new session"
            )

    def bind(self, session: Session) -> Binding:
        """What an approval of this session binds now."""
        peer = known_as(self._context.peers.get(session.peer))
        own, software = self._context.identity.fingerprint, self._context.software
        if session.role == DATA_OWNER_ROLE:
            return Binding(own, peer, software, session.peer_software)
        return Binding(peer, own, session.peer_software, software)

    def check_told(self, session: Session, told: Binding) -> None:
        """Data owner: raise Mismatch unless the model owner's approval names both of us as we know us.

        Or knew us: either may have announced a new key since.
        """
        ours = self.bind(session)
        former = {*self._context.identity.former, *self._context.peers.get(session.peer).former}
        for what, mine, theirs in (
            ("data owner bound by the approval", ours.data_owner, told.data_owner),
            ("model owner bound by the approval", ours.model_owner, told.model_owner),
        ):
            if mine != theirs and theirs not in former and not mine.startswith("ca:") and not theirs.startswith("ca:"):
                raise Mismatch.of(what, mine, theirs)

    def _check_software(self, session: Session, policy: Policy) -> None:
        """An upgrade meanwhile is fine where both still speak one protocol; unless the policy wants the very same."""
        if session.bound is None or not policy.same_software:
            return
        now = self.bind(session)
        for who, then, is_now in (
            ("data owner", session.bound.data_owner_software, now.data_owner_software),
            ("model owner", session.bound.model_owner_software, now.model_owner_software),
        ):
            if then != is_now and is_now not in policy.approved_software:
                raise Mismatch(
                    f"the {who}'s software changed after the approval: it was {then[:16]}, now it is {is_now[:16]},"
                    f' and the policy of the {session.role} has software = "same"',
                    "start a new session, to be approved anew; an upgrade that is known to be good can be named in"
                    " approved_software of that policy.toml before it is made",
                )


def expired(session: Session) -> str:
    """In words that are the same on both sides."""
    return f"the session expired on {time.strftime('%Y-%m-%d %H:%M', time.gmtime(session.terms.expires))} UTC"


def known_as(peer: Peer) -> str:
    return peer.fingerprint or f"ca:{peer.ca_name}"
