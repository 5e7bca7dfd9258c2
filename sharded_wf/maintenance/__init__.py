"""Loops that keep a shard healthy: heartbeats and takeover, timers, the relay, vacuum. Each is a service with
``start`` and
``stop`` (twice is fine), works in bounded batches, and may run in any number of processes at once.
"""
