"""The rows of one slot, and of a shard's control schema: a module per table family, named as its file in
``sql/queries``.

Everything here is pure: functions that turn values into ``Statement``s and results into values. Who sends them, when
and in which transaction, is decided above (``cluster``, ``maintenance``, ``executor``). Payloads pass through unopened.
"""
