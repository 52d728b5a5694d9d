"""The file map, docs/files.md, from the first line of every file: `make docs` prints it there."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = {
    "proto": "The ground floor: settings, recipes, schedules, trees, and what every other folder shares.",
    "rollout_workers": "From a prompt, a seed and weights to a tree.",
    "rollout_workers/policies": "The models: one file per family.",
    "rollout_workers/glyphs": "The small policy that writes numbers: it is shipped, and the demo trains it.",
    "rollout_workers/shapes": "The small policy that draws coloured shapes: it is shipped, and studies train it.",
    "reward_service": "From pictures and prompts to scores.",
    "learner": "From scored trees to new weights.",
    "cluster": "From a recipe to a run. Only `on_ray` and `commands` know Ray.",
    "cluster/run": "One run, whatever executes it.",
    "cluster/plan": "Before a run: its FLOPs, memory and seconds, and the layouts that it could have.",
    "cluster/study": "Studies: variants of a recipe over several seeds, and the report on their runs.",
    "cluster/view": "The web pages about runs: `branchgrpo view`.",
    "cluster/on_ray": "A run's processes on a Ray cluster.",
    "cluster/commands": "What stands behind the command line.",
    "cluster/pages": "What `make docs` writes. Not part of an installation.",
    "benchmarks/chaos": "What faults cost in real runs, and that they leave nothing: `make chaos`.",
    "benchmarks/speed": "How fast one thing is, beside another.",
    "benchmarks/learning": "What could make a run learn more from what it samples.",
    "benchmarks/scaling": "What limits a run on many GPUs.",
    "benchmarks/support": "Stand-ins and local clusters for benchmarks and tests.",
}
"""Folder -> what it is for."""
OTHERS = {
    "cluster/pages": {
        "dashboards.yaml": "The Grafana dashboards: rows, panels, texts and queries.",
        "metrics.md": "How docs/metrics.md begins; `recipe.md` and `files.md` likewise.",
    },
    "cluster/view": {
        "templates/": "The pages' HTML.",
        "static/": "Their style and script.",
    },
    "cluster": {
        "kubernetes/": "Manifests for KubeRay; [Kubernetes](kubernetes.md) explains them.",
        "observability/prometheus/alerts.yaml": "Alert rules for Prometheus.",
        "observability/grafana/dashboards/": "Grafana's dashboards, written by `make docs`.",
        "observability/grafana/provisioning/": "Where Grafana finds them and its data.",
    },
}
"""Folder -> its files that aren't Python, with what they hold."""


def first_line(file: Path) -> str:
    """The first paragraph of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def _lines() -> Iterator[str]:
    for room, purpose in ROOMS.items():
        yield f"\n## `{room}/`\n\n{purpose}\n\n| file | |\n|---|---|\n"
        for file in sorted((ROOT / room).glob("*.py")):
            yield f"| [`{file.name}`](../{room}/{file.name}) | {first_line(file)} |\n"
        for name, purpose in OTHERS.get(room, {}).items():
            yield f"| [`{name}`](../{room}/{name}) | {purpose} |\n"


def page() -> str:
    """The page as Markdown."""
    return Path(__file__).with_suffix(".md").read_text() + "".join(_lines())


if __name__ == "__main__":
    sys.stdout.write(page())
