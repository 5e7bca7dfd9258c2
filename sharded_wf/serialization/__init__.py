"""Values to stored JSON and back. May be imported by every room below it; it imports only the ground floor and model.

What is stored is JSON text made by msgspec, never pickle: it can be read in SQL, and reading it back runs no code that
the reader did not bring along. ``values`` stores one value of a known type, ``arguments`` the arguments of a function,
``exceptions`` an error, ``outcomes`` the end of a child as its parent's mailbox carries it.
"""

from sharded_wf.serialization.arguments import ArgumentsCodec
from sharded_wf.serialization.exceptions import decode_error, encode_error
from sharded_wf.serialization.outcomes import decode_outcome, encode_outcome
from sharded_wf.serialization.values import ValueCodec, codec_for

__all__ = [
    "ArgumentsCodec",
    "ValueCodec",
    "codec_for",
    "decode_error",
    "decode_outcome",
    "encode_error",
    "encode_outcome",
]
