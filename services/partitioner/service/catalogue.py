"""Use cases around models: list them, look one up, read its stage files."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

from services.partitioner.ports import ModelStore, Refused
from shared.domain.errors import BadModelFile, ModelNotFound, Unavailable
from shared.domain.ids import ModelId
from shared.domain.layers import ModelInfo
from shared.llama.cutting import StageFile

log = logging.getLogger(__name__)

RESCAN_ON_MISS_EVERY_S = 1.0  # anybody may ask for models that are not there: bounds what that costs
_PENDING_RETRY_S = 1.0
_PENDING = "its digests are being computed; this is done once per file"


class CatalogueInterface(ABC):
    """What models there are. Calls may overlap.

    Methods that take a model id look into the folder again before they raise `ModelNotFound`; they raise
    `Unavailable` while the model's digests are computed for the first time.
    """

    @abstractmethod
    def list_models(self) -> tuple[tuple[ModelInfo, ...], tuple[Refused, ...]]:
        """Models that can be served, and files that cannot (yet) with the reason."""

    @abstractmethod
    async def rescan(self) -> None:
        """Read the models folder again: headers of new and changed files only."""

    @abstractmethod
    async def get_model(self, model_id: ModelId) -> ModelInfo: ...

    @abstractmethod
    async def stage_file(self, model_id: ModelId, start: int, end: int) -> StageFile:
        """The stage file of layers [start, end), its digest known. Raises `InvalidInput`, `UnsupportedModel`."""

    @abstractmethod
    async def vocabulary_file(self, model_id: ModelId) -> StageFile:
        """The model's keys without tensors, its digest known."""

    @abstractmethod
    async def token_table(self, model_id: ModelId) -> bytes:
        """See `shared.llama.token_table`. Raises `UnsupportedModel` for a tokenizer that is not known."""


class CatalogueService(CatalogueInterface):
    def __init__(self, *, store: ModelStore, now: Callable[[], float]) -> None:
        self._store, self._now = store, now
        self._scanning = asyncio.Lock()
        self._scanned_at: float | None = None
        self._has_pending = asyncio.Event()

    def list_models(self) -> tuple[tuple[ModelInfo, ...], tuple[Refused, ...]]:
        pending = tuple(Refused(f"{model_id}.gguf", _PENDING) for model_id in self._store.pending())
        return self._store.models(), (*self._store.refused(), *pending)

    async def rescan(self) -> None:
        async with self._scanning:
            await self._scan()

    async def get_model(self, model_id: ModelId) -> ModelInfo:
        if not self._store.is_current(model_id):
            await self._scan_on_miss()
        found = self._store.model(model_id)
        if found is not None:
            return found
        if model_id in self._store.pending():
            raise Unavailable(f"the model {model_id} is not ready: {_PENDING}", retry_after_s=_PENDING_RETRY_S)
        for refused in self._store.refused():
            if refused.file == f"{model_id}.gguf":
                raise ModelNotFound(f"the model {model_id} cannot be served: {refused.reason}")
        raise ModelNotFound(f"there is no model {model_id!r}")

    async def stage_file(self, model_id: ModelId, start: int, end: int) -> StageFile:
        await self.get_model(model_id)
        return await asyncio.to_thread(self._store.stage, model_id, start, end)

    async def vocabulary_file(self, model_id: ModelId) -> StageFile:
        await self.get_model(model_id)
        return await asyncio.to_thread(self._store.vocabulary, model_id)

    async def token_table(self, model_id: ModelId) -> bytes:
        await self.get_model(model_id)
        return await asyncio.to_thread(self._store.token_table, model_id)

    async def check_ready(self) -> None:
        """Raise `Unavailable` until the folder was read and, if there are models at all, one can be served."""
        if self._scanned_at is None:
            raise Unavailable("the models folder is not read yet")
        if self._store.pending() and not self._store.models():
            raise Unavailable(f"no model is ready: {_PENDING}")

    async def complete_pending(self) -> None:
        """One round of the background loop: wait for models without digests, then compute them one by one."""
        await self._has_pending.wait()
        self._has_pending.clear()
        for model_id in self._store.pending():
            log.info("digesting_model", extra={"model_id": model_id})
            try:
                await asyncio.to_thread(self._store.complete, model_id)
            except (BadModelFile, ModelNotFound) as error:
                log.warning("model_lost", extra={"model_id": model_id, "reason": error.message})
                await self.rescan()

    async def _scan_on_miss(self) -> None:
        async with self._scanning:
            if self._scanned_at is None or self._now() - self._scanned_at >= RESCAN_ON_MISS_EVERY_S:
                await self._scan()

    async def _scan(self) -> None:
        before = self._store.refused()
        await asyncio.to_thread(self._store.scan)
        self._scanned_at = self._now()
        for refused in self._store.refused():
            if refused not in before:
                log.warning("model_refused", extra={"file": refused.file, "reason": refused.reason})
        if self._store.pending():
            self._has_pending.set()
