"""Puts the chest X-ray console into Airflow's navigation.

Every process of Airflow reads this file, also each task's, so it imports nothing heavy: the console itself is imported
when its first page is asked for.
"""

import asyncio
import importlib
from typing import Any
from urllib.parse import urlsplit

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

PREFIX = "/cxr"
_BASE = urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/")


async def console(scope: dict[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI's own types
    """The console as an ASGI application."""
    app = (await asyncio.to_thread(importlib.import_module, "cxr_console.app")).app
    await app(scope, receive, send)


class CxrConsolePlugin(AirflowPlugin):
    """Airflow serves `fastapi_apps` without any login; the console asks for one on each of its routes."""

    name = "cxr_console"
    fastapi_apps = [{"app": console, "url_prefix": PREFIX, "name": "Chest X-ray console"}]  # noqa: RUF012 - Airflow's
    external_views = [  # noqa: RUF012
        {
            "name": "X-rays",  # a longer one is cut off
            "href": f"{_BASE}{PREFIX}/",
            "destination": "nav",
            "url_route": "cxr",
            "icon": f"{_BASE}{PREFIX}/static/icon.svg",
            "icon_dark_mode": f"{_BASE}{PREFIX}/static/icon-dark.svg",
        }
    ]
