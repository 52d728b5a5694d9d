"""What `kubectl kustomize` makes of a folder, for the keys that our manifests use. Any other key is an error."""

import json
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Manifest = dict[str, Any]
Manifests = dict[tuple[str, str], Manifest]
"""By kind and name, which are unique here."""

KEYS = {
    "apiVersion",
    "kind",
    "resources",
    "components",
    "configMapGenerator",
    "generatorOptions",
    "patches",
    "namespace",
    "images",
    "replacements",
}


def render(folder: Path) -> Manifests:
    """The manifests of the Kustomization in `folder`. Raises ValueError for what this can't do."""
    return _build(folder, {}, "Kustomization")


def _build(folder: Path, manifests: Manifests, kind: str) -> Manifests:
    content = _load((folder / "kustomization.yaml").read_text())[0]
    _only(content, KEYS, folder)
    if content["kind"] != kind:
        raise ValueError(f"{folder} is a {content['kind']}, wanted as a {kind}")
    for name in content.get("resources", []):
        path = folder / name
        for key, manifest in (render(path) if path.is_dir() else _read(path)).items():
            _add(manifests, key, manifest)
    for name in content.get("components", []):
        _build(folder / name, manifests, "Component")
    for generator in content.get("configMapGenerator", []):
        _generate(folder, generator, manifests)
    if content.get("generatorOptions", {"disableNameSuffixHash": True}) != {"disableNameSuffixHash": True}:
        raise ValueError(f"{folder}: generatorOptions {content['generatorOptions']}")
    for patch in content.get("patches", []):
        _patch(folder, patch, manifests)
    if namespace := content.get("namespace"):
        for manifest in manifests.values():
            if manifest["kind"] != "Namespace":
                manifest["metadata"]["namespace"] = namespace
    for image in content.get("images", []):
        _only(image, {"name", "newName", "newTag"}, folder)
        _set_image(list(manifests.values()), image["name"], f"{image['newName']}:{image['newTag']}")
    for replacement in content.get("replacements", []):
        _replace(replacement, manifests)
    return manifests


def _load(text: str) -> list[Any]:
    """YAML documents in which aliases are copies."""
    return [json.loads(json.dumps(document)) for document in yaml.safe_load_all(text)]


def _read(path: Path) -> Manifests:
    manifests: Manifests = {}
    for manifest in _load(path.read_text()):
        _add(manifests, (manifest["kind"], manifest["metadata"]["name"]), manifest)
    return manifests


def _add(manifests: Manifests, key: tuple[str, str], manifest: Manifest) -> None:
    if key in manifests:
        raise ValueError(f"{key} is there twice")
    manifests[key] = manifest


def _generate(folder: Path, generator: Manifest, manifests: Manifests) -> None:
    _only(generator, {"name", "files", "behavior"}, folder)
    if any("/" in file or "=" in file for file in generator["files"]):
        raise ValueError(f"{folder}: files {generator['files']} must lie in the folder and keep their names")
    data = {file: (folder / file).read_text() for file in generator["files"]}
    key = ("ConfigMap", generator["name"])
    if generator.get("behavior", "create") == "merge":
        manifests[key]["data"].update(data)
    else:
        _add(manifests, key, {"apiVersion": "v1", "kind": key[0], "metadata": {"name": key[1]}, "data": data})


def _patch(folder: Path, patch: Manifest, manifests: Manifests) -> None:
    _only(patch, {"target", "path", "patch"}, folder)
    _only(patch["target"], {"kind", "name"}, folder)
    key = (patch["target"]["kind"], patch["target"]["name"])
    (content,) = _load(patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text())
    if isinstance(content, list):
        manifests[key] = jsonpatch.apply_patch(manifests[key], content)
    elif content.get("$patch") == "delete":
        del manifests[key]
    else:
        raise ValueError(f"{folder}: a patch of {key} is neither a JSON patch nor a deletion")


def _set_image(node: Any, name: str, image: str) -> None:
    if isinstance(node, dict):
        if node.get("image") == name:
            node["image"] = image
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            _set_image(inner, name, image)


def _replace(replacement: Manifest, manifests: Manifests) -> None:
    source, (target,) = replacement["source"], replacement["targets"]
    _only(source, {"kind", "name", "fieldPath"}, replacement)
    _only(target, {"select", "fieldPaths", "options"}, replacement)
    (path,) = target["fieldPaths"]
    value: Any = manifests[source["kind"], source["name"]]
    for part in source["fieldPath"].split("."):
        value = value[part]
    *above, last = path.split(".")
    node = manifests[target["select"]["kind"], target["select"]["name"]]
    for part in above:
        node = node[part]
    node[last] = json.loads(json.dumps(value))


def _only(content: Manifest, known: set[str], where: Any) -> None:
    if unknown := content.keys() - known:
        raise ValueError(f"{where}: this renderer doesn't know {sorted(unknown)}")
