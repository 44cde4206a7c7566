"""The page "GenAI" in Airflow's UI: what model calls cost, and what a run produced."""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin


async def page(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request. The page's code is imported at the first one, as every process of Airflow imports this file."""
    from include.page.app import app

    await app(scope, receive, send)


def view(destination: str, href: str, name: str = "GenAI") -> dict[str, str]:
    # Without a leading "/", as a deployment's URL may have a path.
    return {
        "name": name,
        "destination": destination,
        "href": f"genai/{href}",
        "url_route": f"genai-{destination}",
        "icon": "genai/static/icon.svg",
        "icon_dark_mode": "genai/static/icon-dark.svg",
    }


class GenAIPage(AirflowPlugin):
    """Airflow's description of the page."""

    name = "genai"
    fastapi_apps: ClassVar[list[Any]] = [{"name": "genai", "url_prefix": "/genai", "app": page}]
    external_views: ClassVar[list[Any]] = [
        view("nav", ""),
        view("dag", "dags/{DAG_ID}"),
        view("dag_run", "runs/{DAG_ID}/{RUN_ID}", "Results"),
        view("task_instance", "runs/{DAG_ID}/{RUN_ID}?task={TASK_ID}&map_index={MAP_INDEX}", "Model calls"),
    ]
