"""Every bound of the engine, by name, units last. One place to read, one place to change."""

from __future__ import annotations

# IDs and names
ID_LENGTH_MAX_BYTES = 512
NAME_LENGTH_MAX_BYTES = 256
QUEUE_LENGTH_MAX_BYTES = 128
"""Of topics too."""
PRIORITY_MIN = -32768
PRIORITY_MAX = 32767

# Values
PAYLOAD_MAX_BYTES = 16 * 1024 * 1024
ERROR_TRACEBACK_MAX_CHARACTERS = 16_000
INLINE_INPUT_MAX_BYTES = 512
"""A larger input lives in its own insert-only table, because every update copies the workflow's row."""
PAYLOAD_WARN_BYTES = 1024 * 1024
"""A larger value is stored, with a warning in the log."""

# Histories
HISTORY_WARN_ENTRIES = 10_000
"""From here on a warning is logged, at each doubling: replay reads all of it."""
HISTORY_MAX_ENTRIES = 50_000
"""A workflow that wants more recorded fails with ``HistoryTooLong``."""
CONTINUE_AS_NEW_SUGGESTED_ENTRIES = 5_000
CONTINUED_SENDERS_MAX = 10_000
"""Messages of clients that are remembered as received from one run of a workflow to the next."""

# Durations
TIMER_MAX_SECONDS = 100 * 365 * 86_400
"""A longer sleep or timeout is taken for this long; ``math.inf`` works."""
RETRY_CAP_SECONDS = 60.0
"""The longest wait between two attempts of a step whose ``Retry`` names none and begins with none that is longer."""
HEARTBEAT_SAVE_SECONDS = 1.0
"""A step's ``heartbeat`` is saved at most so often; the first, and the last before a failure, at once."""

# Cluster
SLOTS_DEFAULT = 48
SLOTS_MAX = 4096
"""As many at the beginning; and slots are split until hashes are divided by this, not further."""
POSTGRES_VERSION_MIN_NUM = 140000
"""As Postgres itself counts: 150000 is version 15."""
CITUS_VERSION_MIN = (12, 1)
"""The first that moves whole schemas."""
MIGRATION_LOCK_TIMEOUT_SECONDS = 0.5
"""How long a migration waits in line for a table; writers wait behind it for as long."""
MIGRATION_LOCK_PAUSE_SECONDS = 0.5
MIGRATION_PATIENCE_SECONDS = 60.0
LOOK_SECONDS = 2.5
"""How long whoever asks all shards waits for one that can't be connected to while others can; and how long ``shards
status`` and ``shards top`` wait for any answer. (A DSN with several hosts has more for each: see
``HOST_CONNECT_TIMEOUT_SECONDS``.)"""
LOOK_SILENT_FOR_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 0.2
"""The same for a shard that this process has given up within the last ``LOOK_SILENT_FOR_SECONDS``."""
SCHEMA_RETRY_SECONDS = 10.0
"""An executor that is too old for a shard's tables looks again after so long."""
STATUS_DEADLINE_SECONDS = 10.0
COMMIT_STUCK_SECONDS = 3.0
"""A commit that has waited for so long for a synchronous standby: the shard can't be written to."""
TIMELINES_PATIENCE_SECONDS = 2.0
"""How long a process that starts waits until the shards have written down which timelines it saw."""
VERSIONS_DEADLINE_SECONDS = 120.0
STATUS_LANES_MAX = 1_000
STATUS_COUNT_MAX_ROWS = 10_000
STATUS_EXACT_MAX_ROWS = 5_000

# Starting
START_MANY_CHUNK_ROWS = 10_000
START_FLUSH_MAX_ROWS = 2_000

# Group commit
CLAIM_GATHER_SECONDS = 0.002
WRITE_GATHER_SECONDS = 0.003
"""Where there is much to do, one transaction begins no sooner after the last one than this: it carries more then."""
GATHER_MIN_ROWS = 8
"""Fewer rows in a transaction, and the next one does not wait: whoever is alone is served at once."""

# Made IDs
ID_PREFIX_US = 1_000
"""IDs that one process makes within this time have all but the last three characters in common."""
ID_TURN_US = 20_000
"""For so long made IDs fall into the same slots ..."""
SLOTS_PER_TURN_MIN = 2
"""... so many of each shard. A shard that has not twice as many is used whole all the time."""
IDS_PER_TURN_MAX = 500
"""Who makes more IDs in that time goes on to the next slots."""

# Executor
CONCURRENCY_DEFAULT_WORKFLOWS = 2_000
"""For each shard: as a bound for all of them, batches would become smaller with every shard."""
ATTEMPTS_PER_TURN_MAX = 500
"""Attempts of steps that are made in one turn of the event loop, if none of them waits."""
CLAIM_BATCH_MAX_WORKFLOWS = 500
SYNC_THREADS_DEFAULT = 16
FLUSH_MAX_ROWS = 4_000
PARK_AFTER_SECONDS = 2.0
DRAIN_DEADLINE_SECONDS = 20.0

# Leases
HEARTBEAT_SECONDS = 1.25
LEASE_SECONDS = 5.0
TAKEOVER_LOCK_TIMEOUT_SECONDS = 1.0
SUSPECT_AFTER_DEATHS = 2
"""Takeovers without progress after which a workflow runs alone. One: all that a failed machine ran would."""

# Deadlines and back-off of one shard's connections
CONNECT_TIMEOUT_SECONDS = 5.0
HOST_CONNECT_TIMEOUT_SECONDS = 3.0
"""For each host of a DSN that names several: after a failover the dead one must not hold up the other."""
STATEMENT_DEADLINE_SECONDS = 30.0
FLUSH_LOCK_TIMEOUT_SECONDS = 5.0
BACKOFF_FIRST_SECONDS = 0.05
BACKOFF_MAX_SECONDS = 2.0
"""Also how late a shard that is back, or has another primary, is noticed."""

# Polling
IDLE_POLL_SECONDS = 1.5
POLL_FIRST_SECONDS = 0.005
POLL_MAX_SECONDS = 0.2
"""Where no notifications arrive: behind a transaction-pooling proxy."""
LOOK_PAUSE_FACTOR = 10
"""A busy executor looks over its slots at most for one part in so many of its time."""
LOOK_BESIDE_SECONDS = 0.05
"""At least between two looks while more timers are due than are fired at once."""
BUSY_AFTER_SECONDS = 0.5
"""Continuous work after which an executor asks for no more notifications."""
RESULT_POLL_FIRST_SECONDS = 0.02
RESULT_POLL_MAX_SECONDS = 1.0
RESULT_LONG_LOOK_SECONDS = 0.01
RESULT_LOOK_PAUSE_FACTOR = 3
RESULT_LOOK_PAUSE_MAX_SECONDS = 1.0
"""However long the last look took: a shard that hung must not be left alone for longer than it hung."""

# Writing to a shard from outside an executor
WRITE_DEADLINE_SECONDS = 10.0
WRITE_ATTEMPT_SECONDS = 3.0
"""How long the first attempt of a write waits for its answer before the connection is given up and the same rows are
sent on another: short enough for a second attempt within ``WRITE_DEADLINE_SECONDS``. Each attempt without an answer
doubles it, up to ``STATEMENT_DEADLINE_SECONDS``, so that a shard that is merely slow gets the time it needs."""
WRITE_SUSPICIOUS_SECONDS = 1.0
"""A write that takes longer makes the IDs that we draw avoid its shard."""

# Flushes
FLUSH_MARKS_KEPT = 1_000
"""How many flushes' marks a lease leaves behind before it removes them."""

# Transactions with the user's data
TRANSACTION_TIMEOUT_SECONDS = 30.0
"""For one try of a body, unless its decorator says otherwise: an open transaction holds back the shard's vacuum."""
TRANSACTION_CONNECTIONS_MAX = 8
"""Of one executor to one shard."""
TRANSACTION_TRIES_MAX = 20
"""After so many serialization failures, deadlocks or lost connections in a row, the last is the body's error."""
TRANSACTION_BACKOFF_FIRST_SECONDS = 0.005
TRANSACTION_BACKOFF_MAX_SECONDS = 2.0
TRANSACTION_FLUSH_WAIT_SECONDS = 2.0
"""How long a transaction that is ready to commit waits, at a time, for what its workflow recorded before."""
TRANSACTION_LOCK_TIMEOUT_SECONDS = 5.0
"""For what a commit itself may wait for: deferred constraints."""

# Claims
CLAIM_LANES_MAX = 32
CLAIM_FIRST_WORKFLOWS = 32
"""How many a lane is asked for that gave few the last time; else it is asked for twice as many as it gave."""
CLAIM_FIRST_BESIDE_WORKFLOWS = 8
"""The same for new work while work that ran before waits too: many lanes are to share what room there is."""
MARK_MARGIN_SECONDS = 1.0
RESCAN_EMPTY_SECONDS = 5.0
RESCAN_BUSY_SECONDS = 30.0

# Messages
LOOKUP_PAUSE_FACTOR = 1.0
"""Between two looks for what runs wait for, so many times as long as the last one took."""
LOOKUP_PAUSE_MAX_SECONDS = 0.1
HISTORIES_PER_LOOK_MAX = 250
"""Workflows that are replayed in one go, while nothing else happens in the process."""
WAKES_PER_LOOK_MAX = 1_000
SEND_DIRECT_SECONDS = 2.0
"""How long a workflow's message waits for its receiver's shard before it is left to the relay."""
RELAY_AFTER_SECONDS = 5.0
RELAY_BATCH_MAX_ROWS = 1_000
TIMERS_PER_BATCH_MAX = 500
TIMERS_FLOODED_SLOTS_MAX = 4
"""Of slots with more due timers than were fired the last time, so many have their turn together."""
TIMERS_HELD_BACK_SECONDS = 0.25
"""How long timers that are due wait, at most, for those before them to be claimed."""
TIMERS_RECHECK_SECONDS = 0.005
EVENT_KEY_LENGTH_MAX_BYTES = 128
MISSED_WAITS_EVERY_SECONDS = 5.0
"""How often an executor looks whether somebody waits in vain for an event, or was not told of one."""
MISSED_WAITS_PER_LOOK_MAX = 1_000

# Outboxes of users' own transactions
OUTBOX_POLL_SECONDS = 0.5
"""In a database that is no shard. On shards, executors find out by the way."""
OUTBOX_BATCH_MAX_ROWS = 1_000

# Vacuum
VACUUM_EVERY_SECONDS = 2.0
VACUUM_AFTER_ROWS = 1_000
VACUUM_CLAIMS_AFTER_ROWS = 50
"""A row of ``claim`` names up to 500 workflows."""

# Parking and claiming, the finer times
PARK_SWEEP_SECONDS = 0.5
PARK_SWEEP_UNDER_PRESSURE_SECONDS = 0.25
PARK_UNDER_PRESSURE_SECONDS = 0.05
PARK_UNDER_PRESSURE_SHARE = 0.5
"""Only waiting workflows beyond this share of those held make room: a replay costs more than a place."""
CLAIM_DEADLINE_SECONDS = 10.0
ROOM_RECHECK_SECONDS = 1.0

# Attributes
ATTRIBUTES_MAX = 32
"""How many one call sets."""
ATTRIBUTE_NAME_MAX_BYTES = 128
ATTRIBUTE_VALUE_MAX_BYTES = 1024
"""So that an index entry has room for it."""

# Cancelling
CANCEL_CLEANUP_SECONDS = 60.0
"""How long a cancelled workflow may go on to clean up; then it is ended as it is."""
REPLAY_LOOK_SECONDS = 0.05
"""A workflow that is to end (terminated, or out of time to clean up) while it replays is looked at again after this."""
TERMINATE_REPLAY_MAX_SECONDS = 5.0
"""Then it is terminated all the same, whatever its code does."""
CLOSED_CHILD_LOOK_SECONDS = 0.2
"""A child that still cleans up, cancelled by its parent's end, is looked at again after this, if that was resumed."""
PAUSED_RETRY_LOOK_SECONDS = 0.5

# Repair
REPAIR_PAGE_ROWS = 500
"""How many workflows of one slot are resumed, or counted, in one transaction."""
REPAIR_REASONS_MAX = 100
"""Workflows of which a repair in bulk says why it skipped them; of the others it gives the number."""

# Waiting for results
RESULT_IDS_PER_LOOK_MAX = 5_000
WAITER_EXPIRES_SECONDS = 60.0
READ_DEADLINE_SECONDS = 10.0

# Isolated executors
ISOLATED_RESTART_SECONDS = 1.0
ISOLATED_IDLE_SECONDS = 3.0
"""An isolated executor ends when it had nothing to do for so long."""

# Worker processes
GC_THRESHOLDS_OBJECTS = (200_000, 20, 100)
"""For ``gc.set_threshold``, in a process that is all ours."""
RESTART_FIRST_SECONDS = 0.5
RESTART_MAX_SECONDS = 10.0
HEALTH_REQUEST_SECONDS = 5.0
HEALTH_REQUEST_MAX_BYTES = 8 * 1024

# Maps
MAP_CONCURRENCY_DEFAULT = 100
MAP_CONCURRENCY_MAX = 10_000
"""Items of one map that may run at once."""
MAP_PAGE_ITEMS_MAX = 1_000
"""Items of one page: so many entries has its history."""
MAP_LIST_PAGE_ITEMS = 250
MAP_PAGES_AT_ONCE = 4
MAP_ERROR_MAX_CHARACTERS = 500
# Moving slots
MOVE_CHUNK_ROWS = 5_000
MOVE_PACE_FACTOR = 4.0
"""After each chunk a move rests for as many times as long as it took: the other slots need the machine, too ..."""
MOVE_REST_SECONDS_MAX = 1.0
"""... but no longer than this: where chunks take long because the machine is busy, a slot would grow faster than it is
copied."""
MOVE_LOCK_TIMEOUT_SECONDS = 0.1
"""How long a move waits in line for a slot's tables; writers wait behind it for as long."""
MOVE_LOCK_PAUSE_SECONDS = 0.3
MOVE_LOCK_ATTEMPTS = 60
MOVE_DEPARTED_ATTEMPTS = 150
"""To end the lease of an executor that had the slot before: for longer than a user's transaction may take."""
MOVE_ROW_LOCK_TIMEOUT_SECONDS = 1.0
MOVE_IDLE_SECONDS = 3.0
"""A coordinator that hangs with the slot locked is cut off after this long; the slot works on where it was."""
MOVE_PASS_IDLE_SECONDS = 120.0
MOVE_SILENCE_SECONDS = 20.0
"""A server that shows no life for so long, asked every ``MOVE_BEAT_SECONDS``, ends the command; a slow one does not."""
MOVE_SHORT_PASS_SECONDS = 0.1
MOVE_SHORT_PASS_ROWS = 500
"""A pass over the changes that took no longer, or copied no more, is short enough to make the last one with the slot
locked."""
MOVE_LAST_PASSES_MAX = 5
MOVE_SWITCH_SECONDS = 0.15
"""For this long a switch may keep a slot locked …"""
MOVE_SWITCH_KEYS_MAX = 3_000
"""… with no more changed keys to copy; else it is given up, and made again when there are fewer. For a slot that is
never quiet enough both bounds grow, each time ..."""
MOVE_SWITCH_GROWTH = 1.3
"""… by this factor."""
MOVE_PASSES_MAX = 200
MOVE_BEAT_SECONDS = 1.0
MOVE_STALE_SECONDS = 10.0
"""A coordinator that was silent for so long is taken for dead: its move may be resumed, and nobody drains for it."""
MOVE_DRAIN_SECONDS = 8.0
SLOT_DRAIN_SECONDS = 4.0
"""How long the steps that run when a slot is to be moved may take, before their workflows are given back."""
MOVES_AT_ONCE_MAX = 4
MOVES_POLL_SECONDS = 1.0
"""How often an executor looks whether slots move, where it is not notified."""
MOVES_POLL_TOLD_SECONDS = 5.0
"""The same where it is: for what was missed."""
MAP_RELOAD_PATIENCE_SECONDS = 1.0
"""A shard that hangs must not delay those who look for a slot elsewhere."""
MAP_RELOAD_FIRST_SECONDS = 0.01
MAP_RELOAD_MAX_SECONDS = 0.5

# Retention
RETENTION_AGE_MIN_SECONDS = 60.0
"""Longer than any transaction of ours takes: a message on its way when its receiver ended has arrived, or is gone."""
STALE_CHILD_SECONDS = 60
"""A child that existed so long before its parent began is of an earlier workflow that had the parent's ID."""
RETENTION_AGES_MAX = 16
"""Different ages that one configuration may name: each is a walk of its own."""
RETENTION_BATCH_MAX_ROWS = 1_000
RETENTION_BATCH_BEHIND_MAX_ROWS = 4_000
RETENTION_LAG_PART = 0.1
RETENTION_LAG_MAX_SECONDS = 600.0
"""A walk stays this much behind the age (a tenth, at most this): what ran for a while has grown old then, too."""
RETENTION_REWALK_SECONDS = 600.0
RETENTION_REWALK_SHARE = 0.02
"""A full walk begins so long after the last one, or later if walking would take more than this share of the time."""
RETENTION_PAUSE_FACTOR = 4.0
"""Between two batches, so many times as long as the last one took."""
RETENTION_PAUSE_FACTOR_BEHIND = 0.25
RETENTION_BEHIND_SECONDS = 5.0
"""A walk further behind its age takes larger batches, and pauses less: else tables grow without end."""
RETENTION_IDLE_SECONDS = 1.0
RETENTION_HOLD_SECONDS = 30
RETENTION_VACUUM_AFTER_ROWS = 20_000
RETENTION_VACUUM_PART = 0.1
"""A slot's history is vacuumed after so many deleted workflows, but not before a tenth of those that are left."""
RETENTION_DRY_RUN_MAX_ROWS = 1_000_000

# Testing kit
TESTING_LOOK_SECONDS = 0.001
REPLAY_DEADLINE_SECONDS = 10.0
REPLAY_FAILURES_SHOWN = 20

# Doctor
DOCTOR_DEADLINE_SECONDS = 60.0
"""For the whole examination of one shard."""
DOCTOR_STATEMENT_TIMEOUT_SECONDS = 5.0
DOCTOR_LOCK_TIMEOUT_SECONDS = 1.0
DOCTOR_NAMED_MAX = 3
"""How many tables, slots or workflows a finding names; of the others it gives the number."""
DOCTOR_DEAD_ROWS = 20_000
DOCTOR_DEAD_ROWS_CRITICAL = 1_000_000
DOCTOR_BLOAT_BYTES = 64 * 1024 * 1024
"""A churning table that is smaller may be as empty as it likes."""
DOCTOR_BLOAT_FACTOR = 10
"""So many times the size that its live rows need."""
DOCTOR_WRAPAROUND_FACTOR = 1.25
"""Of ``autovacuum_freeze_max_age``: beyond it, autovacuum has tried and not succeeded."""
DOCTOR_WRAPAROUND_CRITICAL_XIDS = 1_500_000_000
DOCTOR_LONG_TRANSACTION_SECONDS = 300.0
DOCTOR_IDLE_TRANSACTION_SECONDS = 60.0
DOCTOR_PREPARED_TRANSACTION_SECONDS = 300.0
DOCTOR_LONG_CRITICAL_FACTOR = 12
"""What holds back vacuum for so many times as long as is worth a warning is critical."""
DOCTOR_LOCK_WAIT_SECONDS = 10.0
DOCTOR_SLOT_WAL_BYTES = 1024 * 1024 * 1024
DOCTOR_SLOT_WAL_CRITICAL_BYTES = 16 * DOCTOR_SLOT_WAL_BYTES
DOCTOR_STANDBY_XMIN_AGE_XIDS = 1_000_000
DOCTOR_LAG_SECONDS = 10.0
DOCTOR_LAG_BYTES = 256 * 1024 * 1024
DOCTOR_CONNECTIONS_PART = 0.8
DOCTOR_CONNECTIONS_CRITICAL_PART = 0.95
DOCTOR_CHECKPOINTS_MIN = 10
"""Fewer forced checkpoints say nothing."""
DOCTOR_BIG_TABLE_ROWS = 10_000
"""A sequential scan of fewer rows harms nobody."""
DOCTOR_CLOCK_SKEW_SECONDS = 2.0
DOCTOR_CLOCK_SKEW_CRITICAL_SECONDS = 30.0
DOCTOR_OVERDUE_SECONDS = 30.0
"""Timers, messages to other slots, claims without a lease and suspects that nobody has taken care of for so long."""
DOCTOR_OPEN_MAX_ROWS = 500_000
"""Rows of workflows read on one shard for those that nobody can run; of larger tables a sample."""
DOCTOR_QUARANTINE_RECENT_SECONDS = 86_400.0
DOCTOR_QUARANTINE_OLD_SECONDS = 7 * 86_400.0

# Load, by slot and tag
TOP_INTERVAL_SECONDS = 2.0
TOP_WINDOW_SECONDS = 60.0
"""Queues and tags are judged by the workflows that were created in so long, and by those that run or are ready."""
TOP_SAMPLE_MAX_ROWS = 5_000
"""Of one slot."""
TOP_SHOWN_ROWS = 15
TOP_HOT_PART = 0.5
"""A tag with this part of what its slot is busy with is hot …"""
TOP_HOT_SLOT_FACTOR = 2.0
"""… if the slot has so many times the load of the average slot …"""
TOP_HOT_MIN_WORKFLOWS = 50
"""… and there are so many workflows to judge by."""
