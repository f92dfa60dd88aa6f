"""Who may not serve, and who gets no new work, at hand in memory and kept in the store."""

import asyncio

from services.coordinator.domain.standing import Standing, quarantined
from services.coordinator.ports import Standings
from shared.domain.errors import NodeNotFound
from shared.domain.ids import NodeId
from shared.runtime.clock import Clock


class StandingBook:
    """Changes hold at once; `save` makes them outlive this process. Every call of the store may raise
    `RegistryUnavailable`."""

    def __init__(self, store: Standings, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[NodeId, Standing] = {}
        self._drained: frozenset[NodeId] = frozenset()
        self._is_recalled = False
        self._unsaved: set[NodeId] = set()
        """What the store does not know yet."""
        self._saving = asyncio.Lock()
        """One exchange at a time, of what is known then: a late one cannot undo a newer one."""

    async def recall(self) -> None:
        """Read what earlier runs kept, once."""
        if not self._is_recalled:
            await self.refresh()

    async def refresh(self) -> None:
        """Read what other coordinators have kept since, or ended."""
        async with self._saving:
            drained = await self._store.drained()
            known = {standing.node_id: standing for standing in await self._store.all()}
            for node_id in self._unsaved:
                own, kept = self._known.get(node_id), known.get(node_id)
                if own is not None and (kept is None or kept.strength < own.strength):
                    known[node_id] = own
            self._known, self._drained, self._is_recalled = known, drained, True

    def of(self, node_id: NodeId) -> Standing | None:
        """What keeps this node away now, if anything does."""
        standing = self._known.get(node_id)
        return standing if standing is not None and standing.holds(self._clock.wall_s()) else None

    def is_drained(self, node_id: NodeId) -> bool:
        return node_id in self._drained

    def evicted(self) -> tuple[Standing, ...]:
        return tuple(standing for standing in self._known.values() if standing.is_evicted)

    def evict(self, node_id: NodeId, *, evidence_id: str, reason: str, address: str) -> bool:
        """Whether this is news: the first evidence stands."""
        known = self._known.get(node_id)
        if known is not None and known.is_evicted:
            return False
        self._unsaved.add(node_id)
        self._known[node_id] = Standing(
            node_id=node_id,
            is_evicted=True,
            reason=reason,
            since_s=self._clock.wall_s(),
            evidence_id=evidence_id,
            address=address,
        )
        return True

    def quarantine(self, node_id: NodeId, *, reason: str, address: str, until_reinstated: bool) -> None:
        self._unsaved.add(node_id)
        self._known[node_id] = quarantined(
            self._known.get(node_id),
            node_id,
            reason=reason,
            address=address,
            wall_s=self._clock.wall_s(),
            until_reinstated=until_reinstated,
        )

    async def save(self, node_id: NodeId) -> None:
        async with self._saving:
            standing = self._known.get(node_id)
            if standing is not None:
                await self._store.put(standing)
                if self._known.get(node_id) is standing:
                    self._unsaved.discard(node_id)

    async def reinstate(self, node_id: NodeId) -> Standing:
        """Forget what kept it away, in the store first. Raises `NodeNotFound` when nothing does."""
        async with self._saving:
            standing = self.of(node_id)
            if standing is None:
                raise NodeNotFound(f"nothing keeps node {node_id} away")
            await self._store.remove(standing)
            if self._known.get(node_id) is standing:  # else it was found guilty meanwhile, which waits to be saved
                del self._known[node_id]
            return standing

    async def set_drained(self, node_id: NodeId, *, is_drained: bool) -> None:
        """In the store first."""
        async with self._saving:
            await self._store.set_drained(node_id, is_drained=is_drained)
            self._drained = self._drained | {node_id} if is_drained else self._drained - {node_id}
