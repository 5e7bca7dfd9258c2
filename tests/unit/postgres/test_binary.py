"""Arrays as Postgres reads them in binary form."""

from __future__ import annotations

import struct

from sharded_wf.postgres import binary

TEXT_OID = 25


def test_texts_among_which_there_are_nulls() -> None:
    header = struct.pack("!iiIii", 1, 1, TEXT_OID, 3, 1)  # one dimension, with nulls, of texts, three of them, from 1
    rows = struct.pack("!i1s", 1, b"a") + struct.pack("!i", -1) + struct.pack("!i2s", 2, "\u00e9".encode())
    assert binary.nullable_text_array(["a", None, "\u00e9"]) == header + rows


def test_texts_without_nulls_go_the_shorter_way() -> None:
    assert binary.nullable_text_array(["a", "b"]) == binary.text_array(["a", "b"])
