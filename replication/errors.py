"""What can go wrong between two sites, named by whose fault it is and by what the caller can do about it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replication.roles import Roles

__all__ = [
    "AnswerLost",
    "ChannelClosed",
    "LocalProtocolError",
    "PeerRefused",
    "PeerUnreachable",
    "RemoteProtocolError",
]


class LocalProtocolError(Exception):
    """This side broke the protocol: a body over the limit, a number out of range, a send into a full channel.

    Always a fault in this program; nothing was sent.
    """


class RemoteProtocolError(Exception):
    """The peer sent bytes that are not the protocol. The connection is of no further use.

    Whatever arrives, the decoders raise this and nothing else.
    """


class PeerUnreachable(Exception):
    """The peer cannot be reached, went away, or has been silent for too long. Trying again later may help."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        """What happened, for an operator: one sentence that names the peer."""


class ChannelClosed(PeerUnreachable):
    """This side closed the channel while it was in use (shut-down, fencing, a newer connection)."""


class AnswerLost(PeerUnreachable):
    """The peer was told to go on with a request and then did not answer: nobody here knows whether it did."""


class PeerRefused(Exception):
    """The peer answered, and will not talk to us in this role. Trying again does not help by itself."""

    def __init__(self, sentence: str, roles: "Roles | None" = None, code: str = "refused") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        """Why, in the peer's words, for an operator."""
        self.roles = roles
        """The roles the peer holds; a superseded site adopts them when their epoch is higher than its own."""
        self.code = code
        """Stable word for programs, see messages.RefusalCode."""
