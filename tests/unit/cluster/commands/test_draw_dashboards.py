"""Names of runs in the queries of dashboards, and on their pictures."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from branchgrpo.cluster.commands.draw_dashboards import Prometheus, draw
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from support import serving

ESCAPED = {'a "quoted" run': r"a \"quoted\" run", "back\\slash": r"back\\slash", "ünï$\\frac$": r"ünï$\\frac$"}


@pytest.mark.parametrize("run", ESCAPED)
def test_any_name_of_a_run_can_be_queried_and_drawn(run: str, tmp_path: Path) -> None:
    queries: list[str] = []

    def answer(request: Request) -> JSONResponse:
        asked = request.query_params
        queries.append(asked.get("query") or asked["match[]"])
        found: Any = {"result": []} if "query" in asked else ["one"]
        return JSONResponse({"status": "success", "data": found})

    with serving(Starlette(routes=[Route("/{path:path}", answer)])) as url:
        pictures = draw(Prometheus(url), run, 0.0, 100.0, tmp_path / "pictures")
    assert len(queries) > 50
    assert all(f'run="{ESCAPED[run]}"' in query for query in queries if "run=" in query)
    assert all(plt.imread(path).std() > 0 for path in pictures)
