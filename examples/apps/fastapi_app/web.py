"""The web application: uvicorn fastapi_app.web:web"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from fastapi_app.batching import app, confirm
from redisagg import Health
from redisagg.errors import AggregatorFull, RedisUnavailable

web = FastAPI(lifespan=app.lifespan)


class Order(BaseModel):
    """The body of a request."""

    item: str
    price: Decimal


@web.post("/customers/{customer}/orders", status_code=202)
async def order(
    customer: int, order: Order, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, str]:
    """Takes an order; a request that is repeated with its key is taken once."""
    task_id = await confirm.aadd(
        order.model_dump(), group_key=("customer", customer), id=idempotency_key
    )
    return {"id": task_id}


@web.exception_handler(RedisUnavailable)
@web.exception_handler(AggregatorFull)
async def busy(request: Request, error: Exception) -> Response:
    """Has the client try again."""
    return JSONResponse({"detail": "try again"}, 503, {"Retry-After": "1"})


@web.get("/health")
async def health(response: Response) -> Health:
    """Says whether orders can be taken, and are worked on."""
    found = await app.ahealth(timeout=1)
    response.status_code = 200 if found.reachable else 503
    return found
