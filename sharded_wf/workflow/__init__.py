"""The Python wing: what users write, and how it is replayed. It has never heard of SQL.

May import the ground floor, ``model`` and ``serialization``; may be imported by ``executor`` and ``client`` and the
rooms below them, never by the Postgres wing. A run meets the outside only through ``host.Host``.
"""
