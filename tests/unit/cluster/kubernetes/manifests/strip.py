"""Writes the v1 schemas of custom resource definitions beside this file, without what validation needs not."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

KEPT_EXTENSIONS = {"x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"}


def stripped(schema: Any) -> Any:
    if isinstance(schema, list):
        return [stripped(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: stripped(inner) for name, inner in value.items()} if key == "properties" else stripped(value)
        for key, value in schema.items()
        if key not in ("description", "default") and (not key.startswith("x-") or key in KEPT_EXTENSIONS)
    }


def main(definitions: list[str]) -> None:
    for file in definitions:
        definition = yaml.safe_load(Path(file).read_text())["spec"]
        (version,) = (version for version in definition["versions"] if version["name"] == "v1")
        text = json.dumps(stripped(version["schema"]["openAPIV3Schema"]), sort_keys=True, separators=(",", ":"))
        out = Path(__file__).with_name(f"{definition['names']['plural']}.json.gz")
        out.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main(sys.argv[1:])
