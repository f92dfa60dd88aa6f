"""A worker and a partitioner over HTTP, as small as the coordinator needs them."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from shared.contracts.messages import Ack, AnyToWorker, LoadStage, SessionStart, WorkAssignment, to_worker
from shared.contracts.partitioner import ModelList, PlanRequest, PlanResponse
from shared.domain.ids import TaskId
from shared.domain.numerics import Profile, StageFacts
from tests.fakes.partitioner import TINY, FakePartitioner, token_block
from tests.integration.runtime.served import served

FACTS = StageFacts("fake", "ab", Profile.EXACT, None)


class WorkerServer:
    """Answers `POST /messages` of whoever shows `token`, keeps what it was told."""

    def __init__(self) -> None:
        self.token = ""
        self.address = ""
        self.told: list[AnyToWorker] = []
        self.headers: list[dict[str, str]] = []
        self.refused = 0
        self._changed = asyncio.Condition()

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/messages")
        async def message(request: Request) -> Ack:
            self.headers.append(dict(request.headers))
            if request.headers.get("Authorization") != f"Bearer {self.token}":
                self.refused += 1
            told = to_worker.validate_json(await request.body())
            assert isinstance(told, AnyToWorker)
            async with self._changed:
                self.told.append(told)
                self._changed.notify_all()
            return Ack(facts=FACTS if isinstance(told, LoadStage) else None)

        return app

    async def wait_for(self, wanted: Callable[[AnyToWorker], bool]) -> AnyToWorker:
        """The first message that is `wanted`, at most 10 s from now."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: any(map(wanted, self.told)))
        return next(message for message in self.told if wanted(message))

    async def assignment(self, task_id: TaskId, *, epoch: int = 1) -> WorkAssignment:
        found = await self.wait_for(
            lambda told: isinstance(told, WorkAssignment) and (told.task_id, told.epoch) == (task_id, epoch)
        )
        assert isinstance(found, WorkAssignment)
        return found

    async def started(self, task_id: TaskId, *, epoch: int = 1) -> None:
        await self.wait_for(
            lambda told: isinstance(told, SessionStart) and (told.task_id, told.epoch) == (task_id, epoch)
        )


@asynccontextmanager
async def running_worker() -> AsyncIterator[WorkerServer]:
    worker = WorkerServer()
    async with served(worker.app()) as address:
        worker.address = address
        yield worker


@asynccontextmanager
async def running_partitioner() -> AsyncIterator[str]:
    app, fake, boot = FastAPI(), FakePartitioner(), secrets.token_hex(4)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"boot": boot}

    @app.get("/models")
    async def models() -> ModelList:
        return ModelList(models=(TINY,))

    @app.get("/models/tiny/token-bytes")
    async def token_bytes() -> Response:
        return Response(token_block([bytes([byte]) for byte in range(256)]), media_type="application/octet-stream")

    @app.post("/plans")
    async def plan(body: PlanRequest) -> PlanResponse:
        made = await fake.plan(body.model_id, body.nodes, num_stages=body.num_stages)
        return PlanResponse(plan=made, model=TINY, cached=False)

    async with served(app) as url:
        yield url
