"""What `kubectl kustomize` makes of cluster/kubernetes, kept in rendered.json.gz for where there is no kubectl.

Run this file to write it again.
"""

import gzip
import hashlib
import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).parents[5] / "cluster" / "kubernetes"
RENDERED = Path(__file__).with_name("rendered.json.gz")
FOLDERS = sorted(
    str(file.parent.relative_to(KUBERNETES))
    for file in KUBERNETES.rglob("kustomization.yaml")
    if "kind: Kustomization" in file.read_text()
)
Manifest = dict[str, Any]
Manifests = dict[tuple[str, str], Manifest]
"""By kind and name, which are unique in a folder."""


def rendered(folder: str) -> Manifests:
    """The manifests of a folder, as they are kept. They are shared: don't change them."""
    return _by_name(_kept()[folder])


def by_kubectl(folder: str) -> Manifests:
    """The manifests of a folder, rendered now."""
    return _by_name(_kubectl(folder))


def _by_name(manifests: list[Manifest]) -> Manifests:
    found = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}
    assert len(found) == len(manifests)
    return found


@cache
def _kept() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(gzip.decompress(RENDERED.read_bytes()))
    assert kept["sources"] == _sources(), f"cluster/kubernetes has changed: run `python {__file__}`; it needs kubectl"
    return kept


def _sources() -> str:
    """A hash of all that is rendered."""
    files = sorted(file for file in KUBERNETES.rglob("*") if file.suffix in (".yaml", ".txt"))
    return hashlib.sha256(b"".join(str(f.relative_to(KUBERNETES)).encode() + f.read_bytes() for f in files)).hexdigest()


def _kubectl(folder: str) -> list[Manifest]:
    command = ["kubectl", "kustomize", str(KUBERNETES / folder)]
    return list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True).stdout))


if __name__ == "__main__":
    content = {"sources": _sources(), **{folder: _kubectl(folder) for folder in FOLDERS}}
    RENDERED.write_bytes(gzip.compress(json.dumps(content, sort_keys=True).encode(), mtime=0))
