"""What is gathered, and what becomes of it.

redisagg worker fastapi_app.batching:app
"""

from __future__ import annotations

from decimal import Decimal
from typing import TypedDict

from redisagg import App, Task, group_key_parts

app = App.from_env()  # REDISAGG_URL and others


class Ordered(TypedDict):
    """What a task says of an order."""

    item: str
    price: Decimal


@app.aggregator(
    "fastapi-mails",
    group_grace_period=60,
    group_max_delay=600,
    add_timeout=1,  # a request waits no longer
    sink="stream://fastapi-mails",
)
async def confirm(group: str, tasks: list[Task]) -> Task:
    """Makes one mail of all orders of a customer."""
    _, customer = group_key_parts(group)
    orders: list[Ordered] = [task.payload for task in tasks]
    text = "".join(f"{each['item']}: {each['price']}\n" for each in orders)
    total = sum((each["price"] for each in orders), Decimal())
    return Task("mail", {"to": customer, "text": text, "total": total})
