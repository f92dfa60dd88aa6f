"""The bodies of the OpenAI dialect: whole answers and the chunks of a stream. Pure: values in, JSON-like out."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.api.domain.answer_text import AnswerPart, AnswerToken
from shared.domain.errors import ButterflyError
from shared.domain.ids import ModelId, TaskId
from shared.domain.sampler import RULE_VERSION
from shared.domain.task import FinishReason, TaskKind, Verification

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What all chunks of an answer share."""

    kind: TaskKind
    task_id: TaskId
    created_s: int
    model_id: ModelId
    fingerprint: str
    seed: int
    verification: Verification
    with_logprobs: bool

    @property
    def verified(self) -> bool:
        return self.verification is not Verification.NONE

    @property
    def receipt_url(self) -> str | None:
        """Where the proof of a verified answer is."""
        return f"/v1/tasks/{self.task_id}/receipt" if self.verified else None


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int

    def as_json(self) -> Json:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def system_fingerprint(model_root: str) -> str:
    """Equal fingerprint, seed and parameters give equal tokens, however the model is cut into stages, unless its
    profile is `tolerant`."""
    digest = hashlib.blake2b(f"{model_root}|{RULE_VERSION}".encode(), digest_size=8)
    return f"bf_{digest.hexdigest()}"


def opening_chunk(head: AnswerHead, *, include_usage: bool) -> Json | None:
    """The role, before any text. Completions have none."""
    if head.kind is TaskKind.COMPLETION:
        return None
    return _chunk(head, _choice(head, {"role": "assistant", "content": ""}), include_usage=include_usage)


def text_chunk(head: AnswerHead, part: AnswerPart, *, include_usage: bool) -> Json:
    choice = _choice(head, {"content": part.text}, text=part.text, tokens=part.tokens)
    return _chunk(head, choice, include_usage=include_usage)


def closing_chunk(head: AnswerHead, finish_reason: FinishReason, *, include_usage: bool) -> Json:
    choice = _choice(head, {}, finish_reason=finish_reason)
    return _with_receipt(head, _chunk(head, choice, include_usage=include_usage))


def usage_chunk(head: AnswerHead, usage: Usage) -> Json:
    return _with_receipt(head, _chunk(head, None, include_usage=True) | {"usage": usage.as_json()})


def error_event(error: ButterflyError, task_id: TaskId) -> Json:
    """The end of a stream that failed: official clients take a stream that simply ends for a complete answer."""
    return {
        "error": {
            "message": error.message,
            "type": "server_error",
            "param": None,
            "code": error.code,
            "task_id": task_id,
        }
    }


def whole_answer(
    head: AnswerHead, part: AnswerPart, *, finish_reason: FinishReason | None, usage: Usage, error: Json | None = None
) -> Json:
    """The answer at once. `finish_reason` None and `error`: what was committed of a task that did not complete."""
    logprobs = _logprobs(head, part.tokens)
    choice: Json
    if head.kind is TaskKind.CHAT:
        message = {"role": "assistant", "content": part.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}
        name = "chat.completion"
    else:
        choice = {"index": 0, "text": part.text, "logprobs": logprobs, "finish_reason": finish_reason}
        name = "text_completion"
    body = _envelope(head, name) | {"choices": [choice], "usage": usage.as_json()}
    body["butterfly"] = {
        "task_id": head.task_id,
        "verification": head.verification,
        "verified": head.verified,
        "seed": head.seed,
        "receipt_url": head.receipt_url,
    }
    return body if error is None else body | {"error": error}


def _envelope(head: AnswerHead, name: str) -> Json:
    prefix = "chatcmpl" if head.kind is TaskKind.CHAT else "cmpl"
    return {
        "id": f"{prefix}-{head.task_id}",
        "object": name,
        "created": head.created_s,
        "model": head.model_id,
        "system_fingerprint": head.fingerprint,
    }


def _chunk(head: AnswerHead, choice: Json | None, *, include_usage: bool) -> Json:
    name = "chat.completion.chunk" if head.kind is TaskKind.CHAT else "text_completion"
    body = _envelope(head, name) | {"choices": [] if choice is None else [choice]}
    body["butterfly"] = {"verified": head.verified, "seed": head.seed, "task_id": head.task_id}
    return body | ({"usage": None} if include_usage else {})


def _with_receipt(head: AnswerHead, chunk: Json) -> Json:
    """Of the last chunks: how the answer was verified, and where its proof is. OpenAI clients pass the field by."""
    told = {
        "task_id": head.task_id,
        "seed": head.seed,
        "verification": head.verification,
        "verified": head.verified,
        "receipt": head.receipt_url,
    }
    return chunk | {"butterfly": told}


def _choice(
    head: AnswerHead,
    delta: Mapping[str, object],
    *,
    text: str = "",
    tokens: Sequence[AnswerToken] = (),
    finish_reason: FinishReason | None = None,
) -> Json:
    content: Json = {"delta": dict(delta)} if head.kind is TaskKind.CHAT else {"text": text}
    logprobs = _logprobs(head, tokens) if tokens else None
    return {"index": 0} | content | {"logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(head: AnswerHead, tokens: Sequence[AnswerToken]) -> Json | None:
    if not head.with_logprobs:
        return None
    if head.kind is TaskKind.CHAT:
        return {"content": [_chat_logprob(token) for token in tokens], "refusal": None}
    return {
        "tokens": [_shown(token.piece) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{_shown(piece): logprob for piece, logprob in token.top} for token in tokens],
        "text_offset": [token.text_offset for token in tokens],
    }


def _chat_logprob(token: AnswerToken) -> Json:
    top = [{"token": _shown(piece), "logprob": logprob, "bytes": list(piece)} for piece, logprob in token.top]
    return {
        "token": _shown(token.piece),
        "logprob": token.logprob,
        "bytes": list(token.piece),
        "top_logprobs": top,
    }


def _shown(piece: bytes) -> str:
    """A token as text; a replacement character stands where it holds part of a character."""
    return piece.decode("utf-8", "replace")
