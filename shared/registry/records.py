"""How tasks and tokens stand in Redis: to and from bytes."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import TypeAdapter

from shared.domain.ids import Attempt, Epoch
from shared.domain.tail_state import TailState
from shared.domain.task import FinishReason, InferenceTask, TokenRecord
from shared.domain.task_state import TaskState
from shared.registry.base import StreamEntry, TaskRecord

_TASK = TypeAdapter(InferenceTask)


def encode_task(task: InferenceTask) -> bytes:
    """All but the prompt, which is kept apart: it goes earlier and may be long."""
    return _TASK.dump_json(replace(task, prompt_ids=()))


def encode_prompt(prompt_ids: Sequence[int]) -> bytes:
    """Little-endian u32 each."""
    return struct.pack(f"<{len(prompt_ids)}I", *prompt_ids)


def decode_prompt(packed: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(packed) // 4}I", packed)


def encode_token(record: TokenRecord) -> str:
    """JSON: [id, logit, other id, other logit], and if asked for: logprob, [[id, logprob]...]."""
    fields: list[object] = [record.token_id, record.logit, record.other_id, record.other_logit]
    if record.logprob is not None:
        fields += [record.logprob, record.top_logprobs]
    return json.dumps(fields, separators=(",", ":"))


def decode_token(encoded: bytes) -> TokenRecord:
    return _token(json.loads(encoded))


def _token(fields: list) -> TokenRecord:  # type: ignore[type-arg]  # parsed JSON that we wrote ourselves
    plain = fields[:5]
    return TokenRecord(*plain, *(tuple((token_id, logprob) for token_id, logprob in top) for top in fields[5:]))


def decode_entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> StreamEntry:
    kind = fields[b"kind"].decode()
    data = json.loads(fields[b"data"])
    if kind == "commit":
        data["records"] = tuple(_token(record) for record in data["records"])
    return StreamEntry(entry_id.decode(), kind, data)


def decode_record(fields: Mapping[bytes, bytes], prompt: bytes | None) -> TaskRecord:
    """`fields`: the task's hash. `prompt` None: not read, or expired."""
    task = _TASK.validate_json(fields[b"spec"])
    if prompt is not None:
        task = replace(task, prompt_ids=decode_prompt(prompt))
    reason = _word(fields, b"finish_reason")
    return TaskRecord(
        task=task,
        state=TaskState(fields[b"state"].decode()),
        attempt=Attempt(int(fields[b"attempt"])),
        epoch=Epoch(int(fields[b"epoch"])),
        created_s=int(fields[b"created"]) / 1000,
        started_s=_seconds(fields, b"started"),
        finished_s=_seconds(fields, b"finished"),
        deadline_s=int(fields[b"deadline"]) / 1000,
        num_prompt_tokens=int(fields[b"num_prompt"]),
        num_committed=int(fields[b"committed"]),
        plan_id=_word(fields, b"plan_id"),
        finish_reason=None if reason is None else FinishReason(reason),
        error_code=_word(fields, b"error_code"),
        error=_word(fields, b"error") or "",
        expires_s=_seconds(fields, b"expires"),
        num_disputes=int(fields.get(b"disputes", 0)),
        tail_audit=TailState(_word(fields, b"tail_audit") or TailState.NONE),
    )


def _word(fields: Mapping[bytes, bytes], name: bytes) -> str | None:
    return fields.get(name, b"").decode() or None


def _seconds(fields: Mapping[bytes, bytes], name: bytes) -> float | None:
    return int(fields[name]) / 1000 if fields.get(name) else None
