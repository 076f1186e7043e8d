"""Puts the chest X-ray console into Airflow's navigation.

Every process of Airflow reads this file, also each task's, so it imports nothing heavy: the console itself is imported
once the API server has started, or when its first page is asked for.
"""

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Thread
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


def _read_ahead() -> None:
    importlib.import_module("cxr_console.app")
    importlib.import_module("cxr_console.store_cache").read_ahead()


@asynccontextmanager
async def _reading_ahead(_: object) -> AsyncIterator[None]:
    Thread(target=_read_ahead, name="cxr-console-ahead", daemon=True).start()
    yield


def application() -> Any:  # noqa: ANN401 - FastAPI, which is not imported here
    """The console for Airflow's API server, which tells applications of FastAPI, and only these, that it has started.

    It has imported FastAPI itself by then; another process has no use for it and is given what costs nothing.
    """
    if "fastapi" not in sys.modules:
        return console
    from fastapi import FastAPI

    outer = FastAPI(lifespan=_reading_ahead, openapi_url=None)
    outer.mount("/", console)
    return outer


class CxrConsolePlugin(AirflowPlugin):
    """Airflow serves `fastapi_apps` without any login; the console asks for one on each of its routes."""

    name = "cxr_console"
    fastapi_apps = [{"app": application(), "url_prefix": PREFIX, "name": "Chest X-ray console"}]  # noqa: RUF012 - Airflow's
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
