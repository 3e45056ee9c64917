"""What `kubectl kustomize` makes of the manifests of `deploy/`, as far as they use it: resources and merged patches.

Lists are merged by the names of their items, or by their paths, as Kubernetes does for the lists patched there; `null`
takes a field away, and `$patch: delete` a document.
"""

from pathlib import Path
from typing import Any

import yaml

__all__ = ["build"]

Document = dict[str, Any]
_KEYS = ("name", "mountPath")


def build(folder: Path) -> list[Document]:
    """Returns the documents of a folder with a `kustomization.yaml`."""
    (listed,) = documents(folder / "kustomization.yaml")
    found: list[Document] = []
    for name in listed["resources"]:
        path = folder / name
        found += build(path) if path.is_dir() else documents(path)
    for patch in listed.get("patches", ()):
        for change in documents(folder / patch["path"]):
            found = _patched(found, change)
    for document in found:
        if document["kind"] != "Namespace" and "namespace" in listed:
            document["metadata"].setdefault("namespace", listed["namespace"])
    return found


def documents(path: Path) -> list[Document]:
    """Returns the documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document is not None]


def _patched(found: list[Document], change: Document) -> list[Document]:
    same = [one for one in found if _identity(one) == _identity(change)]
    assert len(same) == 1, f"the patch of {_identity(change)} changes {len(same)} documents"
    if change.get("$patch") == "delete":
        return [one for one in found if one is not same[0]]
    return [_merged(one, change) if one is same[0] else one for one in found]


def _identity(document: Document) -> tuple[str, str, str]:
    return document["apiVersion"], document["kind"], document["metadata"]["name"]


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name for name in {**old, **new} if not (name in new and new[name] is None)]
        return {name: _merged(old.get(name), new[name]) if name in new else old[name] for name in names}
    if isinstance(old, list) and isinstance(new, list) and all(isinstance(one, dict) for one in (*old, *new)):
        key = next(key for key in _KEYS if all(key in one for one in (*old, *new)) and _distinct(key, old))
        changes = {one[key]: one for one in new}
        kept = [_merged(one, changes.pop(one[key])) if one[key] in changes else one for one in old]
        return [*kept, *changes.values()]
    return new


def _distinct(key: str, items: list[Document]) -> bool:
    return len({one[key] for one in items}) == len(items)
