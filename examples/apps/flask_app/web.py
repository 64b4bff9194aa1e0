"""The web application.

gunicorn "flask_app.web:create_app()"
flask --app flask_app.web redisagg worker
"""

from __future__ import annotations

import os
from dataclasses import asdict

from flask import Blueprint, Flask, jsonify
from flask.typing import ResponseReturnValue

from flask_app.batching import agg, count, database
from redisagg.errors import RedisAggError

pages = Blueprint("pages", __name__)


@pages.get("/pages/<name>")
def show(name: str) -> ResponseReturnValue:
    """Shows a page. That its view is not counted is no reason not to show it."""
    try:
        count.add(group_key=name)
    except RedisAggError:
        return f"This is {name}, not counted."
    return f"This is {name}."


@pages.get("/views/<name>")
def views(name: str) -> ResponseReturnValue:
    """Tells how often a page was seen, up to a few seconds ago."""
    with database() as connection:
        query = "SELECT coalesce(sum(count), 0) FROM views WHERE page = ?"
        [(number,)] = connection.execute(query, (name,)).fetchall()
    return jsonify(page=name, views=number)


@pages.get("/health")
def health() -> ResponseReturnValue:
    """Says whether views are counted."""
    found = agg.health(timeout=1)
    return jsonify(asdict(found)), 200 if found.reachable else 503


def create_app(instance_path: str | None = None) -> Flask:
    """Makes the application.

    Args:
        instance_path: folder of the database; that of the variable INSTANCE_PATH if None.
    """
    app = Flask(__name__, instance_path=instance_path or os.environ.get("INSTANCE_PATH"))
    app.config.from_mapping(REDISAGG_ADD_TIMEOUT=1)  # a request waits no longer
    agg.init_app(app)
    app.register_blueprint(pages)
    return app
