"""Whether a manifest is what the API server would take, with nothing dropped from it."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator, ValidationError

KUBERNETES = "1.35"
"""A version whose schemas the package kubernetes-validate has."""
NAMES = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
        "namespace": {"type": "string"},
        "labels": NAMES,
        "annotations": NAMES,
    },
}
DURATION = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"}
SCRAPE_CONFIG = {
    "required": ["httpSDConfigs"],
    "properties": {
        "scrapeInterval": DURATION,
        "httpSDConfigs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["url"],
                "properties": {"url": {"type": "string", "pattern": "^https?://.+$"}, "refreshInterval": DURATION},
            },
        },
    },
}
POD_MONITOR = {
    "required": ["selector", "podMetricsEndpoints"],
    "properties": {
        "selector": {"type": "object", "properties": {"matchLabels": NAMES}},
        "podTargetLabels": {"type": "array", "items": {"type": "string"}},
        "podMetricsEndpoints": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object", "properties": {"port": {"type": "string"}, "interval": DURATION}},
        },
    },
}
"""Of the Prometheus Operator's kinds, the fields that are used here; others are refused."""


def check(manifest: dict[str, Any]) -> None:
    """Raises jsonschema's ValidationError, for unknown fields too."""
    kind = f"{manifest.get('apiVersion')} {manifest.get('kind')}"
    if kind in ("ray.io/v1 RayCluster", "ray.io/v1 RayJob"):
        _custom(f"{manifest['kind'].lower()}s").validate(manifest)
    elif kind in ("monitoring.coreos.com/v1alpha1 ScrapeConfig", "monitoring.coreos.com/v1 PodMonitor"):
        spec = SCRAPE_CONFIG if manifest["kind"] == "ScrapeConfig" else POD_MONITOR
        schema = {"type": "object", "properties": {"spec": {"type": "object", **spec}}}
        _validator(schema).validate(manifest)
    else:
        try:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        except kubernetes_validate.SchemaNotFoundError as error:
            raise ValidationError(f"there is no kind {kind}") from error


@cache
def _custom(plural: str) -> Draft202012Validator:
    file = Path(__file__).with_name(f"{plural}.json.gz")
    return _validator(json.loads(gzip.decompress(file.read_bytes())))


def _validator(schema: dict[str, Any]) -> Draft202012Validator:
    properties = {name: inner for name, inner in schema["properties"].items() if name != "status"}
    names = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": METADATA}
    whole = {**schema, "properties": {**properties, **names}, "required": ["apiVersion", "kind", "metadata", "spec"]}
    return Draft202012Validator(_closed(whole))


def _closed(schema: Any) -> Any:
    """A JSON schema of a Kubernetes one, in which what has no place in it is an error rather than dropped."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        key: {name: _closed(inner) for name, inner in value.items()} if key == "properties" else _closed(value)
        for key, value in schema.items()
    }
    if closed.get("type") == "object" and not closed.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    if closed.get("x-kubernetes-int-or-string"):
        closed["type"] = ["integer", "string"]
    if closed.get("nullable"):
        closed["type"] = [*([closed["type"]] if isinstance(closed["type"], str) else closed["type"]), "null"]
    return closed
