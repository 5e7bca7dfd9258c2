"""One Postgres database: named statements, migrations, connections.

Other rooms import from the modules by name: ``queries`` (the statements of ``sql/``), ``migrate``, ``connect``. Nothing
here knows of shards other than the one it is connected to.
"""
