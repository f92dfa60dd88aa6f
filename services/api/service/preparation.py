"""Makes a task out of what a client asks for: model, prompt ids, limits, defaults."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from services.api.domain.limits import check_text_length, check_token_ids, tokens_to_generate
from services.api.domain.openai_bodies import AnswerHead, system_fingerprint
from services.api.domain.task_ids import new_task_id
from services.api.domain.wanted import (
    ChatPrompt,
    TaskTerms,
    TextPrompt,
    TokenPrompt,
    WantedAnswer,
    verification_of,
)
from services.api.ports import Catalogue, ModelVocabulary, Vocabularies
from shared.domain.errors import EmptyInput, InvalidInput, InvalidToken
from shared.domain.layers import ModelInfo
from shared.domain.sampler import check_sampler
from shared.domain.task import InferenceTask, StopRules, Verification

SEED_BITS = 53  # survives clients that read JSON numbers as doubles


@dataclass(frozen=True, slots=True)
class TaskDefaults:
    """The configured ones."""

    max_output_tokens: int
    context_tokens: int
    """Rows that each slot of the cluster holds."""
    deadline_s: float
    verification: Verification
    max_byzantine: int
    """Also the most that a task may ask for."""
    hold: bool
    """Of verified answers."""


@dataclass(frozen=True, slots=True)
class PreparedTask:
    task: InferenceTask
    model: ModelInfo
    vocabulary: ModelVocabulary


class TaskPreparation:
    def __init__(
        self,
        *,
        catalogue: Catalogue,
        vocabularies: Vocabularies,
        defaults: TaskDefaults,
        wall_s: Callable[[], float],
        entropy: Callable[[int], bytes],
    ) -> None:
        """`entropy`: that many fresh random bytes."""
        self._catalogue = catalogue
        self._vocabularies = vocabularies
        self._defaults = defaults
        self._wall_s = wall_s
        self._entropy = entropy

    async def prepare(self, wanted: WantedAnswer, *, owner: str) -> PreparedTask:
        """Raises `InvalidInput` and its kin, `ModelNotFound`, `VerificationUnavailable`, `PeerUnavailable`."""
        model = await self._catalogue.model(wanted.model_id)
        verification, max_byzantine = verification_of(
            wanted.terms, self._defaults.verification, self._defaults.max_byzantine
        )
        vocabulary = await self._vocabularies.of(model)
        prompt_ids = await self._prompt_ids(wanted, vocabulary, context_tokens=self._context_tokens(model))
        max_tokens = tokens_to_generate(
            wanted.kind,
            asked=wanted.max_tokens,
            num_prompt=len(prompt_ids),
            context_tokens=self._context_tokens(model),
            max_output_tokens=self._defaults.max_output_tokens,
        )
        check_sampler(wanted.sampler, len(vocabulary.pieces))
        task = InferenceTask(
            task_id=new_task_id(int(self._wall_s() * 1000), self._entropy(10)),
            kind=wanted.kind,
            model_id=model.model_id,
            prompt_ids=prompt_ids,
            max_tokens=max_tokens,
            sampler=wanted.sampler if wanted.seeded else replace(wanted.sampler, seed=self._drawn_seed()),
            stop=_stop_rules(wanted, vocabulary),
            verification=verification,
            max_byzantine=max_byzantine,
            hold=self._hold(wanted.terms, verification),
            priority=wanted.terms.priority,
            deadline_s=self._defaults.deadline_s if wanted.terms.deadline_s is None else wanted.terms.deadline_s,
            result_ttl_s=wanted.terms.result_ttl_s,
            owner=owner,
            metadata=wanted.terms.metadata,
        )
        return PreparedTask(task, model, vocabulary)

    async def known(self, task: InferenceTask) -> PreparedTask:
        """An accepted task with what is needed to show its answer. Raises `ModelNotFound` when its model is gone."""
        model = await self._catalogue.model(task.model_id)
        return PreparedTask(task, model, await self._vocabularies.of(model))

    def _hold(self, terms: TaskTerms, mode: Verification) -> bool:
        if mode is not Verification.NONE:
            return self._defaults.hold if terms.hold is None else terms.hold
        if terms.hold:
            raise InvalidInput(
                "an answer is held back until its audit has passed; with verification 'none' there is no audit",
                param="butterfly.hold",
            )
        return False

    def _context_tokens(self, model: ModelInfo) -> int:
        return min(model.context_tokens, self._defaults.context_tokens)

    async def _prompt_ids(
        self, wanted: WantedAnswer, vocabulary: ModelVocabulary, *, context_tokens: int
    ) -> tuple[int, ...]:
        def check_length(text_bytes: int, param: str) -> None:
            check_text_length(
                text_bytes,
                longest_piece_bytes=vocabulary.longest_piece_bytes,
                context_tokens=context_tokens,
                param=param,
            )

        match wanted.prompt:
            case ChatPrompt(messages):
                check_length(sum(len(message.content.encode()) for message in messages), "messages")
                return _filled(await vocabulary.encode_chat(messages), "messages")
            case TextPrompt(text):
                check_length(len(text.encode()), "prompt")
                return _filled(await vocabulary.encode_text(text), "prompt")
            case TokenPrompt(token_ids):
                check_token_ids(token_ids, n_vocab=len(vocabulary.pieces), param="prompt")
                return token_ids

    def _drawn_seed(self) -> int:
        return int.from_bytes(self._entropy(8), "big") % (1 << SEED_BITS)


def _filled(prompt_ids: tuple[int, ...], param: str) -> tuple[int, ...]:
    if not prompt_ids:
        raise EmptyInput("the prompt is empty", param=param)
    return prompt_ids


def _stop_rules(wanted: WantedAnswer, vocabulary: ModelVocabulary) -> StopRules:
    for position, token_id in enumerate(wanted.stop_token_ids):
        if token_id >= len(vocabulary.pieces):
            raise InvalidToken(
                f"token id {token_id} is outside the vocabulary of {len(vocabulary.pieces)} tokens",
                param=f"stop_token_ids.{position}",
            )
    ends = () if wanted.ignore_eos else vocabulary.end_ids
    return StopRules(end_ids=tuple(sorted({*ends, *wanted.stop_token_ids})), strings=wanted.stop_strings)


def head_of(task: InferenceTask, model: ModelInfo, *, created_s: float) -> AnswerHead:
    """What every body of this task's answer begins with."""
    return AnswerHead(
        kind=task.kind,
        task_id=task.task_id,
        created_s=int(created_s),
        model_id=task.model_id,
        fingerprint=system_fingerprint(model.root),
        seed=task.sampler.seed,
        verification=task.verification,
        with_logprobs=task.sampler.logprobs is not None,
    )
