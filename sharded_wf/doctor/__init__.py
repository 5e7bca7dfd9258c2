"""Examining a cluster: what is wrong, why it matters, what mends it; and where the load is.

Each family of checks is a module whose checks are small functions that yield findings; ``registry`` lists them,
``examine`` carries them out. Whoever examines only reads, in short transactions with a time limit, needs no superuser,
and says what it was not allowed to see. A shard that is away is a finding, and the others are examined all the same.
"""
