"""Moving slots between shards while they are in use: add, remove, drain and rebalance shards.

``move`` is the state machine of one move, which any process can finish or undo; ``plan`` decides which slots move
where; ``run`` carries out several moves at once. What happens in which order, and why: "Moving a slot" in
ARCHITECTURE.md.
"""
