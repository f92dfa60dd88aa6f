"""The gateway's list of models, kept for a while."""

import asyncio
from collections.abc import Mapping
from typing import TypeVar, cast

import pytest
from pydantic import BaseModel

from services.api.clients.partitioner import KEPT_S, HttpCatalogue
from shared.contracts.partitioner import ModelList
from shared.domain.errors import ModelNotFound, PeerUnavailable
from shared.domain.layers import ModelInfo
from shared.resilience.peer_group import PeerGroup
from tests.fakes.clock import FakeClock
from tests.fakes.planning import planned_model

T = TypeVar("T", bound=BaseModel)
MODEL = planned_model()


class Partitioner(PeerGroup):
    """Answers when `may_answer`."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.takes_s = 0.0
        self.models: tuple[ModelInfo, ...] = ()
        self.is_away = False
        self.num_asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def get(
        self, path: str, reply: type[T], *, params: Mapping[str, str] | None = None, timeout_s: float = 2.0
    ) -> T:
        assert (path, reply) == ("/models", ModelList)
        self.num_asked += 1
        await self.may_answer.wait()
        if self.takes_s:
            await self._clock.sleep(self.takes_s)
        if self.is_away:
            raise PeerUnavailable("away")
        return cast("T", ModelList(models=self.models))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def partitioner(clock: FakeClock) -> Partitioner:
    return Partitioner(clock)


@pytest.fixture
def catalogue(partitioner: Partitioner, clock: FakeClock) -> HttpCatalogue:
    return HttpCatalogue(partitioner, now=clock.now_s)


async def test_all_who_ask_while_the_list_is_fetched_anew_get_the_new_one(
    catalogue: HttpCatalogue, partitioner: Partitioner, clock: FakeClock
) -> None:
    assert await catalogue.models() == ()
    await clock.advance(10 * KEPT_S)
    partitioner.models = (MODEL,)
    partitioner.may_answer.clear()
    async with asyncio.TaskGroup() as group:
        found = [group.create_task(catalogue.model(MODEL.model_id)) for _ in range(2)]
        await clock.settle()
        partitioner.may_answer.set()
    assert [each.result() for each in found] == [MODEL, MODEL]
    assert partitioner.num_asked == 2


async def test_the_last_list_goes_on_while_the_partitioner_is_away(
    catalogue: HttpCatalogue, partitioner: Partitioner, clock: FakeClock
) -> None:
    partitioner.models = (MODEL,)
    await catalogue.models()
    await clock.advance(KEPT_S)
    partitioner.is_away = True
    assert await catalogue.models() == (MODEL,)


async def test_nobody_waits_for_more_than_one_call_that_fails(
    catalogue: HttpCatalogue, partitioner: Partitioner, clock: FakeClock
) -> None:
    partitioner.models = (MODEL,)
    await catalogue.models()
    await clock.advance(KEPT_S)
    partitioner.is_away, partitioner.takes_s = True, 2 * KEPT_S
    async with asyncio.TaskGroup() as group:
        found = [group.create_task(catalogue.model(MODEL.model_id)) for _ in range(5)]
        await clock.settle()
        await clock.advance(2 * KEPT_S)
        await clock.settle()
    assert [each.result() for each in found] == [MODEL] * 5
    assert partitioner.num_asked == 2


async def test_a_first_list_that_cannot_be_had_is_an_error(catalogue: HttpCatalogue, partitioner: Partitioner) -> None:
    partitioner.is_away = True
    with pytest.raises(PeerUnavailable):
        await catalogue.models()


async def test_what_is_not_in_the_list_does_not_exist(catalogue: HttpCatalogue) -> None:
    with pytest.raises(ModelNotFound, match="GET /v1/models"):
        await catalogue.model(MODEL.model_id)
