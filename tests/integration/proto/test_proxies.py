"""A proxy that the environment names gets no requests for this machine."""

import json
import subprocess
import sys


def test_the_command_line_spares_them() -> None:
    code = "from branchgrpo.cluster import cli, cli as c; import os, json; c._prepare_environment(); "
    code += "print(json.dumps(os.environ['no_proxy'].split(',')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"localhost", "127.0.0.1", "::1"} <= set(json.loads(done.stdout))
