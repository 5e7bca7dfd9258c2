"""Moving slots between shards while they are in use, and splitting them: add, remove, drain and rebalance shards.

``move`` and ``split`` are the state machines of one move and one split, which any process can finish or undo;
``coordinator`` is what they share. ``plan`` decides which slots move where; ``fleet`` carries out several at once. What
happens in which order, and why: "Moving a slot" and "Splitting a slot" in ARCHITECTURE.md.
"""
