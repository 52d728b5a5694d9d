"""What processes import, and whose packages they find."""

import subprocess
import sys
from pathlib import Path

from support import ROOT


def test_what_asks_a_cluster_starts_without_what_a_run_needs() -> None:
    code = "import sys, branchgrpo.cluster.on_ray.cluster_runs, branchgrpo.cluster.on_ray.connect; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ray" in loaded
    assert not {"ray.serve", "pandas", "torch", "fastapi", "branchgrpo.proto.settings"} & {*loaded}


def test_status_itself_starts_without_all_that() -> None:
    code = "import sys, branchgrpo.cluster.cli, branchgrpo.cluster.commands.status; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ray", "torch", "grpc", "requests", "branchgrpo.proto.settings"} & {*loaded}


def test_what_passes_things_on_needs_no_torch() -> None:
    """It would cost the controller, the driver and every reward replica seconds at the start."""
    modules = "cluster.train", "cluster.on_ray.driver", "cluster.on_ray.reward_deployment", "reward_service.ocr"
    code = f"import {', '.join(f'branchgrpo.{name}' for name in modules)}, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_proto_in_a_process_of_the_checkout_is_proto_plus() -> None:
    """As in every Ray worker of a driver that is started there: Ray puts the folder first in the workers' path."""
    code = "import proto; print(proto.__file__, hasattr(proto, 'Message'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    file, is_proto_plus = done.stdout.split()
    assert Path(file).parts[-3:-1] == ("site-packages", "proto")
    assert is_proto_plus == "True"
