"""Every key of the registry. All carry one hash tag, so that scripts stay valid on a Redis Cluster."""

from types import MappingProxyType

from shared.domain.ids import TaskId

ROOT = "{bf}"
"""Given to every script as its only KEYS entry: it routes; the scripts build the keys they touch from `PREFIXES`."""

PREFIXES = MappingProxyType(
    {
        "task": f"{ROOT}:task:",  # hash: the mutable record
        "request": f"{ROOT}:request:",  # string: the prompt's token ids
        "tokens": f"{ROOT}:tokens:",  # list: committed tokens
        "events": f"{ROOT}:events:",  # stream: what clients read
        "receipts": f"{ROOT}:receipts:",  # hash: "epoch:window" -> signed receipts; "tail" -> its tail audit's
        "queue": f"{ROOT}:queue:",  # zset per group: task id -> -rank * 1e13 + sequence
        "open": f"{ROOT}:open:",  # set per owner: unfinished tasks
        "index_of": f"{ROOT}:tasks:",  # zset per owner, all scores 0: task ids in order
    }
)
"""Keys that go on with an id."""

SINGLES = MappingProxyType(
    {
        "groups": f"{ROOT}:groups",  # set: groups with queued tasks
        "queued": f"{ROOT}:queued",  # zset: queued tasks of all groups -> time of submission, ms
        "sequence": f"{ROOT}:sequence",  # counter: arrival
        "wake": f"{ROOT}:wake",  # list with at most one entry: nudges a blocked dispatcher
        "leases": f"{ROOT}:leases",  # zset: task id -> end of the lease, ms
        "sessions": f"{ROOT}:sessions",  # zset: task id -> end of its coordinator's lease, ms
        "coordinators": f"{ROOT}:coordinators",  # zset: a replica that is here (JSON) -> end of its lease, ms
        "standings": f"{ROOT}:standings",  # hash: node id -> why it may not serve (JSON)
        "drained": f"{ROOT}:drained",  # set: nodes that an operator gives no new work
        "profiles": f"{ROOT}:profiles",  # hash: node id -> what was measured of it (JSON)
        "profiles_changed": f"{ROOT}:profiles_changed",  # zset: node id -> number of its last change, counted over all
        "profile_changes": f"{ROOT}:profile_changes",  # counter: changes of profiles
        "deadlines": f"{ROOT}:deadlines",  # zset: every unfinished task -> deadline, ms
        "attached": f"{ROOT}:attached",  # zset: tasks whose client waits -> end of the attachment, ms
        "index": f"{ROOT}:tasks",  # zset, all scores 0: all task ids in order
        "unfinished": f"{ROOT}:unfinished",  # zset, all scores 0: ids of unfinished tasks in order
        "expiring": f"{ROOT}:expiring",  # zset: "id owner" -> when the record goes, ms
        "generation": f"{ROOT}:generation",  # counter: goes down only when data was lost
    }
)


def task(task_id: TaskId) -> str:
    return PREFIXES["task"] + task_id


def request(task_id: TaskId) -> str:
    return PREFIXES["request"] + task_id


def tokens(task_id: TaskId) -> str:
    return PREFIXES["tokens"] + task_id


def events(task_id: TaskId) -> str:
    return PREFIXES["events"] + task_id


def receipts(task_id: TaskId) -> str:
    return PREFIXES["receipts"] + task_id


def index(owner: str | None, *, unfinished_only: bool) -> str:
    """Where to look for tasks in order: a superset of those of `owner` (None: of all)."""
    if unfinished_only:
        return SINGLES["unfinished"]
    return SINGLES["index"] if owner is None else PREFIXES["index_of"] + owner


def idempotency(owner: str, key: str) -> str:
    """The length keeps (`a:b`, `c`) and (`a`, `b:c`) apart."""
    return f"{ROOT}:idem:{len(owner)}:{owner}:{key}"
