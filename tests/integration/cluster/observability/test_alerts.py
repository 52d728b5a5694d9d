"""Alert rules: promtool plays runs that they are made for, and what they look at is what the code exports."""

import re
import subprocess
from pathlib import Path

import yaml
from branchgrpo.cluster.commands import monitor
from branchgrpo.cluster.pages import metrics

RULES = Path(monitor.__file__).parents[1] / "observability" / "prometheus" / "alerts.yaml"


def rules() -> list[dict]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return group["rules"]


def test_alerts_fire_for_what_they_are_for_and_not_before() -> None:
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(Path(__file__).with_name("alerts.yaml"))]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_series_of_an_alert_is_exported() -> None:
    exported = {
        found.name + ending
        for module in metrics.EXPORTED_BY.values()
        for found in metrics.series_of(module)
        for ending in ("", "_bucket", "_sum", "_count")
    }
    for rule in rules():
        for name in re.findall(r"\bbranchgrpo_\w+", rule["expr"]):
            assert name in exported, f"{rule['alert']} asks for {name}"


def test_every_alert_is_in_the_docs_and_is_tested() -> None:
    page = (RULES.parents[3] / "docs" / "metrics.md").read_text()
    played = Path(__file__).with_name("alerts.yaml").read_text()
    for rule in rules():
        assert f"`{rule['alert']}`" in page
        assert rule["alert"] in played
