"""What `branchgrpo monitor` tells Grafana."""

from pathlib import Path
from typing import Any

import yaml
from branchgrpo.cluster.commands.monitor import (
    SCRAPE_SECONDS,
    grafana_command,
)
from branchgrpo.cluster.pages.dashboards import DASHBOARDS


def test_grafana_is_told_of_prometheus_and_of_the_dashboards(tmp_path: Path) -> None:
    command, variables = grafana_command("/usr/bin/grafana", tmp_path, "http://127.0.0.1:9090", 3000)
    assert command[:2] == ["/usr/bin/grafana", "server"]
    provisioning = Path(variables["GF_PATHS_PROVISIONING"])

    def provisioned(kind: str) -> Any:
        text = (provisioning / kind / "branchgrpo.yaml").read_text()
        for name, value in variables.items():  # as Grafana does
            text = text.replace(f"${name}", value)
        return yaml.safe_load(text)

    (provider,) = provisioned("dashboards")["providers"]
    assert {path.name for path in Path(provider["options"]["path"]).iterdir()} == {
        f"{name}.json" for name in DASHBOARDS
    }
    (source,) = provisioned("datasources")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://127.0.0.1:9090")
    assert source["jsonData"]["timeInterval"] == f"{SCRAPE_SECONDS}s"
