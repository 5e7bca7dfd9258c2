"""Money that is moved exactly once: an order and its workflow in one transaction, and steps that commit with your data.

python examples/transfer.py                    on private Postgres servers, kept in ./.sharded_wf
python examples/transfer.py shards.toml        on your own cluster
"""

from __future__ import annotations

import asyncio
import sys
from typing import LiteralString

import psycopg

from sharded_wf import App, ClusterConfig, current
from sharded_wf.dev.cluster import embedded_cluster

app = App("bank")
TABLES: LiteralString = """
    create table if not exists account (name text primary key, cents bigint not null check (cents >= 0));
    create table if not exists transfer (workflow text primary key, cents bigint not null);
    insert into account values ('ada', 10000), ('bob', 0) on conflict do nothing;
"""


@app.transaction
async def move(conn: psycopg.AsyncConnection, source: str, target: str, cents: int) -> int:
    """What is written here and the record that it was are one commit."""
    await conn.execute("insert into transfer values (%s, %s)", (current().workflow_id, cents))
    await conn.execute("update account set cents = cents + %s where name = %s", (cents, target))
    cursor = await conn.execute(
        "update account set cents = cents - %s where name = %s returning cents", (cents, source)
    )
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])


@app.workflow
async def transfer(source: str, target: str, cents: int) -> str:
    try:
        left = await move(source, target, cents)
    except psycopg.errors.CheckViolation:
        return f"{source} has too little; nothing was moved"
    return f"{cents} cents from {source} to {target}, {left} left"


async def main() -> None:
    config = ClusterConfig.from_file(sys.argv[1]) if len(sys.argv) > 1 else embedded_cluster("")
    for shard in config.shards:
        async with await psycopg.AsyncConnection.connect(shard.dsn, autocommit=True) as conn:
            await conn.execute(TABLES)
    async with app.connect(config) as client, app.executor(config):
        # {bob} is the routing key: all of these live on one shard, with the rows that they change.
        dsn = config.shard(client.locate("{bob}/1")[1]).dsn
        async with await psycopg.AsyncConnection.connect(dsn) as conn:  # your own transaction
            first = await client.start_in(conn, transfer.bind("ada", "bob", 4200), id="{bob}/1")
            second = await client.start_in(conn, transfer.bind("ada", "bob", 99999), id="{bob}/2")
            print("before the commit:", await client.describe(first.id))
        for handle in (first, second):
            print(await handle.result(timeout=60))


if __name__ == "__main__":
    asyncio.run(main())
