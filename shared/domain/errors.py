"""The one error tree.

ButterflyError
├── InvalidInput            the caller must change the request
│   ├── EmptyInput  InvalidToken  ContextLengthExceeded  UnsupportedParameter
│   ├── UnsupportedContentPart  NoChatTemplate  TemplateError  IdempotencyKeyReused
│   ├── InvalidPlanInput  BadModelFile  UnsupportedModel  InvalidCursor
│   └── InvalidJson  UnsupportedMediaType  BodyTooLarge
├── NotFound                ModelNotFound  TaskNotFound  NodeNotFound  EvidenceNotFound  ResultExpired  UnknownUrl
│                           ReceiptNotAvailable  RowsNotKept
├── NotAllowed              InvalidCredentials  Forbidden
│   └── WrongServiceToken   between our services only: a client never hears of it
├── Unavailable             the service cannot now; `retry_after_s` says when to come back
│   ├── NoCapacity  QueueFull  QuotaExceeded  ServerDraining  RegistryUnavailable
│   ├── VerificationUnavailable
│   ├── RegistryUntrusted   a RegistryUnavailable: the store answers, but forgot or may forget
│   └── PeerUnavailable     a peer did not answer; CircuitOpen: not even asked
├── DeadlineExceeded        an answer would be useless now
├── AnswerLost              an accepted answer that ended badly
│   └── GenerationFailed  TaskCancelled  DisputeUnresolved
├── Fenced                  StaleEpoch  StaleAttempt  InvalidTransition: a late or wrong writer
├── ProtocolViolation       bytes from a worker or peer that break the rules
└── EngineError             AbiMismatch  OutOfMemory  SelfTestFailed  BadBatch  BadSlot
                            NoSlotSpace  EngineFault  WrongClass  BadBlob  MissingLibrary

`code` is the stable word on the wire, in every dialect. HTTP statuses live in `shared.runtime`, nowhere else.
"""

from typing import ClassVar


class ButterflyError(Exception):
    """Root. `message` is for people: it names what is wrong and what would be right; never a secret or a prompt."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        """Path of the offending field, e.g. `messages.0.content`."""
        self.retry_after_s = retry_after_s


class InvalidInput(ButterflyError):
    code = "invalid_value"


class EmptyInput(InvalidInput):
    code = "empty_input"


class InvalidToken(InvalidInput):
    code = "invalid_token"


class InvalidJson(InvalidInput):
    code = "invalid_json"


class ContextLengthExceeded(InvalidInput):
    code = "context_length_exceeded"


class UnsupportedParameter(InvalidInput):
    code = "unsupported_parameter"


class UnsupportedContentPart(InvalidInput):
    code = "unsupported_content_part"


class UnsupportedMediaType(InvalidInput):
    code = "unsupported_media_type"


class NoChatTemplate(InvalidInput):
    code = "no_chat_template"


class TemplateError(InvalidInput):
    code = "template_error"


class IdempotencyKeyReused(InvalidInput):
    code = "idempotency_key_reused"


class InvalidPlanInput(InvalidInput):
    code = "invalid_plan_input"


class BadModelFile(InvalidInput):
    code = "bad_model_file"


class UnsupportedModel(InvalidInput):
    code = "unsupported_model"


class InvalidCursor(InvalidInput):
    code = "invalid_cursor"


class BodyTooLarge(InvalidInput):
    code = "body_too_large"


class NotFound(ButterflyError):
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class TaskNotFound(NotFound):
    code = "task_not_found"


class NodeNotFound(NotFound):
    code = "node_not_found"


class RowsNotKept(NotFound):
    """A worker has not, or no longer, the rows of an earlier epoch that a seat was to go on from."""

    code = "rows_not_kept"


class ReceiptNotAvailable(NotFound):
    """The task is there, but nothing of it was committed with receipts (yet)."""

    code = "receipt_not_available"


class EvidenceNotFound(NotFound):
    code = "evidence_not_found"


class UnknownUrl(NotFound):
    code = "unknown_url"


class ResultExpired(NotFound):
    code = "result_expired"


class NotAllowed(ButterflyError):
    code = "not_allowed"


class InvalidCredentials(NotAllowed):
    code = "invalid_api_key"


class WrongServiceToken(InvalidCredentials):
    """Whoever called is no control service of this cluster, or was given another token."""

    code = "wrong_service_token"


class Forbidden(NotAllowed):
    code = "forbidden"


class Unavailable(ButterflyError):
    code = "unavailable"
    retryable = True


class NoCapacity(Unavailable):
    code = "no_capacity"


class QueueFull(Unavailable):
    code = "queue_full"


class QuotaExceeded(Unavailable):
    code = "rate_limit_exceeded"


class ServerDraining(Unavailable):
    code = "server_draining"


class RegistryUnavailable(Unavailable):
    code = "registry_unavailable"


class RegistryUntrusted(RegistryUnavailable):
    """The store answers but may have forgotten, or may forget, what it acknowledged: an operator has to look at it."""

    code = "registry_untrusted"
    retryable = False


class VerificationUnavailable(Unavailable):
    code = "verification_unavailable"
    retryable = False


class PeerUnavailable(Unavailable):
    code = "peer_unavailable"


class CircuitOpen(PeerUnavailable):
    code = "circuit_open"


class DeadlineExceeded(ButterflyError):
    code = "deadline_exceeded"


class AnswerLost(ButterflyError):
    code = "answer_lost"


class GenerationFailed(AnswerLost):
    """The task failed for good; its own attempts are used up."""

    code = "generation_failed"


class TaskCancelled(AnswerLost):
    """Somebody cancelled the task while this client waited for it."""

    code = "task_cancelled"


class DisputeUnresolved(AnswerLost):
    code = "dispute_unresolved"


class Fenced(ButterflyError):
    code = "fenced"


class StaleEpoch(Fenced):
    code = "stale_epoch"


class StaleAttempt(Fenced):
    code = "stale_attempt"


class InvalidTransition(Fenced):
    code = "invalid_transition"


class ProtocolViolation(ButterflyError):
    code = "protocol_violation"


class EngineError(ButterflyError):
    code = "engine_error"


class MissingLibrary(EngineError):
    code = "missing_library"


class AbiMismatch(EngineError):
    code = "abi_mismatch"


class OutOfMemory(EngineError):
    code = "out_of_memory"


class SelfTestFailed(EngineError):
    code = "self_test_failed"


class BadBatch(EngineError):
    code = "bad_batch"


class BadSlot(EngineError):
    code = "bad_slot"


class NoSlotSpace(EngineError):
    code = "no_slot_space"


class EngineFault(EngineError):
    code = "engine_fault"


class WrongClass(EngineError):
    code = "wrong_class"


class BadBlob(EngineError):
    code = "bad_blob"


def _by_code(root: type[ButterflyError]) -> dict[str, type[ButterflyError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _by_code(child)
    return found


def error_from_code(
    code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
) -> ButterflyError:
    """The error a peer meant: the class of its `code`, or the root for a code this version does not know."""
    return _by_code(ButterflyError).get(code, ButterflyError)(message, param=param, retry_after_s=retry_after_s)
