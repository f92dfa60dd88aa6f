"""Facts about models, asked once: they are bound to the model's root digest and never change."""

from typing import TypeVar

from services.coordinator.domain.token_table import TokenTable
from services.coordinator.ports import Partitioner
from shared.domain.errors import InvalidPlanInput, ProtocolViolation
from shared.domain.ids import ModelId
from shared.domain.layers import ModelInfo

K = TypeVar("K")
V = TypeVar("V")

MAX_MODELS = 64  # a token table takes about 1 MB


class Models:
    def __init__(self, partitioner: Partitioner) -> None:
        self._partitioner = partitioner
        self._infos: dict[ModelId, ModelInfo] = {}
        self._tables: dict[str, TokenTable] = {}

    async def info(self, model_id: ModelId, *, root: str | None = None) -> ModelInfo:
        """The model as the partitioner has it. `root`: which version is meant; raises `InvalidPlanInput` when there
        is another one by now, `ModelNotFound`, `PeerUnavailable`."""
        info = self._infos.get(model_id)
        if info is None or root not in {None, info.root}:
            info = await self._partitioner.model(model_id)
            _keep(self._infos, model_id, info)
        if root not in {None, info.root}:
            raise InvalidPlanInput(f"the plan is for another version of {model_id} than the catalogue has")
        return info

    async def table(self, info: ModelInfo) -> TokenTable:
        """Raises `ProtocolViolation` when it does not fit the vocabulary, `PeerUnavailable`."""
        table = self._tables.get(info.root)
        if table is None:
            table = await self._partitioner.token_table(info.model_id)
            if len(table) != info.n_vocab:
                raise ProtocolViolation(
                    f"the token table of {info.model_id} has {len(table)} tokens, the model {info.n_vocab}"
                )
            _keep(self._tables, info.root, table)
        return table


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    if key not in kept and len(kept) >= MAX_MODELS:
        del kept[next(iter(kept))]
    kept[key] = value
