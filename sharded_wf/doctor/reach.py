"""Does every shard answer, is it the right database, and can it be written to?"""

from __future__ import annotations

from collections.abc import Iterator

from sharded_wf.doctor.checks import ClusterCheck, Family, Fleet, ShardCheck
from sharded_wf.doctor.finding import Finding, Severity
from sharded_wf.doctor.look import Look


def unreachable(fleet: Fleet) -> Iterator[Finding]:
    """Shards that don't answer, or not in time."""
    for name, reason in fleet.silent.items():
        held = [slot for slot, shard in fleet.placement.items() if shard == name]
        slots = f"its {len(held)} slots" if held else "its slots"
        yield Finding(
            Severity.CRITICAL,
            f"{fleet.config.shard(name).address} can't be examined: {reason}",
            f"Workflows in {slots} don't go on, and can't be started, until it is back. All else works. "
            "If the reason says nothing else: start the server, or promote its standby. The work goes on by itself.",
            (fleet.psql(name, "select 1"),),
            name,
        )


def read_only(look: Look) -> Iterator[Finding]:
    """A standby, or a database that refuses writes."""
    why = "Nothing can be started, claimed or recorded here."
    if look.facts.standby:
        yield Finding(
            Severity.CRITICAL,
            "this server is a standby: it refuses every write",
            f"{why} The DSN must lead to the primary: name all hosts, and target_session_attrs=read-write.",
            (look.psql("select pg_promote()") + "  # only if its primary is gone for good",),
        )
    elif (setting := look.settings["default_transaction_read_only"]).value == "on":
        yield Finding(
            Severity.CRITICAL,
            f"default_transaction_read_only is on (from the {setting.source})",
            why,
            (look.psql("set default_transaction_read_only = off", *turn_back(look, setting.name)),),
        )


def turn_back(look: Look, name: str) -> tuple[str, ...]:
    """The statements that bring a setting back to its default, where it was set."""
    match look.settings[name].source:
        case "database":
            return (f'alter database "{look.facts.database}" reset {name}',)
        case "user" | "database user":
            return (f'alter role "{look.facts.role}" in database "{look.facts.database}" reset {name}',
                    f'alter role "{look.facts.role}" reset {name}')  # fmt: skip
        case _:
            return f"alter system reset {name}", "select pg_reload_conf()"


FAMILY = Family(
    "shards",
    "every shard answers and can be written to",
    (ClusterCheck("unreachable", unreachable), ShardCheck("read-only", read_only)),
)
