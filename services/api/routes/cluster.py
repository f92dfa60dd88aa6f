"""What the cluster is and does."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from services.api.service.cluster import ClusterInterface


def build_cluster_router(cluster: ClusterInterface) -> APIRouter:
    router = APIRouter()

    async def nodes() -> Response:
        return JSONResponse(await cluster.nodes())

    async def node(node_id: str) -> Response:
        return JSONResponse(await cluster.node(node_id))

    async def keys() -> Response:
        return JSONResponse(await cluster.keys())

    async def state() -> Response:
        return JSONResponse(await cluster.state())

    router.add_api_route("/v1/nodes", nodes, methods=["GET", "HEAD"], response_model=None)
    router.add_api_route("/v1/nodes/{node_id}", node, methods=["GET", "HEAD"], response_model=None)
    router.add_api_route("/v1/keys", keys, methods=["GET", "HEAD"], response_model=None)
    router.add_api_route("/v1/state", state, methods=["GET", "HEAD"], response_model=None)
    return router
