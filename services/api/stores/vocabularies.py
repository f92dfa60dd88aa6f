"""Vocabularies of the served models: fetched from the partitioner once per model, loaded, kept."""

import asyncio
import logging
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from services.api.domain.chat_template import ChatMessage, ChatTemplate
from services.api.domain.prompt import chat_prompt_ids, completion_prompt_ids
from services.api.ports import ModelVocabulary, Vocabularies
from shared.domain.errors import BadModelFile, EngineError, NoChatTemplate, ProtocolViolation, TemplateError
from shared.domain.ids import ModelId
from shared.domain.layers import ModelInfo
from shared.llama.vocabulary import Vocabulary
from shared.runtime.tasks import BackgroundTasks

MAX_FILE_BYTES: Final = 512 * 1024 * 1024

T = TypeVar("T")
Fetch = Callable[[ModelId], AsyncIterator[bytes]]
"""The bytes of a model's vocabulary file, as they come."""

log = logging.getLogger(__name__)


class LoadedVocabulary(ModelVocabulary):
    """The library's vocabulary with what is needed of it at each request. Made on the executor thread."""

    def __init__(self, vocabulary: Vocabulary, *, executor: ThreadPoolExecutor, now: Callable[[], float]) -> None:
        self._vocabulary = vocabulary
        self._executor = executor
        self.adds_bos = vocabulary.adds_bos
        self.bos_id = vocabulary.bos_id
        self.pieces = vocabulary.pieces()
        self.end_ids = vocabulary.end_ids
        self.drops_leading_space = vocabulary.adds_space_prefix
        self.longest_piece_bytes = max(map(len, self.pieces), default=1)
        self._template: ChatTemplate | None = None
        self._template_fault = "this model has no chat template: use /v1/completions"
        if vocabulary.chat_template is not None:
            try:
                self._template = ChatTemplate(
                    vocabulary.chat_template,
                    bos_token=vocabulary.bos_piece,
                    eos_token=vocabulary.eos_piece,
                    now=now,
                )
            except TemplateError as error:
                self._template_fault = error.message

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)

    def is_control(self, token_id: int) -> bool:
        return not self.pieces[token_id]

    async def encode_text(self, text: str) -> tuple[int, ...]:
        return await self._off_the_loop(partial(completion_prompt_ids, self, text))

    async def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        if self._template is None:
            raise NoChatTemplate(self._template_fault, param="model")
        nonce = f"bf{secrets.token_hex(16)}"
        return await self._off_the_loop(partial(chat_prompt_ids, self, self._template, messages, nonce=nonce))

    async def _off_the_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


class VocabularyStore(Vocabularies):
    """Keeps every vocabulary it loaded: a cluster serves few models."""

    def __init__(
        self,
        *,
        fetch: Fetch,
        load: Callable[[Path], Vocabulary],
        executor: ThreadPoolExecutor,
        tasks: BackgroundTasks,
        now: Callable[[], float],
    ) -> None:
        """`executor`: of one thread, since the library's vocabularies are for one thread. `now`: monotonic seconds."""
        self._fetch = fetch
        self._load = load
        self._executor = executor
        self._tasks = tasks
        self._now = now
        self._loading: dict[str, asyncio.Task[LoadedVocabulary]] = {}

    async def of(self, model: ModelInfo) -> ModelVocabulary:
        loading = self._loading.get(model.root)
        if loading is None or (loading.done() and (loading.cancelled() or loading.exception() is not None)):
            loading = self._tasks.start(self._fetch_and_load(model), name=f"load vocabulary {model.model_id}")
            self._loading[model.root] = loading
        return await asyncio.shield(loading)  # one caller that goes away must not stop the others

    async def _fetch_and_load(self, model: ModelInfo) -> LoadedVocabulary:
        loop = asyncio.get_running_loop()
        began_s = self._now()
        with tempfile.TemporaryDirectory(prefix="butterfly-vocabulary-") as folder:
            path = Path(folder) / "vocabulary.gguf"
            with path.open("wb") as file:
                async for chunk in self._fetch(model.model_id):
                    file.write(chunk)
                    if file.tell() > MAX_FILE_BYTES:
                        raise ProtocolViolation(f"the vocabulary of {model.model_id} exceeds {MAX_FILE_BYTES} bytes")
            loaded = await loop.run_in_executor(self._executor, self._load_file, path)
        log.info("vocabulary_loaded", extra={"model": model.model_id, "seconds": round(self._now() - began_s, 3)})
        return loaded

    def _load_file(self, path: Path) -> LoadedVocabulary:
        try:
            vocabulary = self._load(path)
        except BadModelFile as error:  # a fault of ours, not of the request that came first
            raise EngineError("the vocabulary of this model cannot be read") from error
        return LoadedVocabulary(vocabulary, executor=self._executor, now=self._now)
