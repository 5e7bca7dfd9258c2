"""The tests of sharded_wf. ``unit`` needs no database; ``integration`` runs against embedded Postgres."""
