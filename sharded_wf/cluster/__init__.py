"""The set of shards: which there are, which slots they hold, how they fare.

Other rooms import from the modules by name:

* ``initialize``: make a cluster out of empty databases, or add a shard to one;
* ``directory``: what a process must know before it does anything (the shard map, checked);
* ``fleet``: the state of every shard, and migrations on all of them;
* ``shard_map``: what each shard stores about the cluster, for whoever moves slots;
* ``fanout``: the same question to every shard at once.
"""
