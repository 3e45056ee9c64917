"""Every error that a user of the client can meet stands in one namespace."""

import ast
import importlib.util
from pathlib import Path

import keylock.errors as general
import keylock_client
from keylock_client import errors

CLIENT = Path(keylock_client.__file__).parent
# What is raised where a vendor's data are read, seeds are made, or bundles are written: the client does none of it.
NOT_CALLED = {
    "keylock.text.class_names": {"DataError"},
    "keylock.trigger.statistics": {"DataError"},
    "keylock.trigger.keys": {"KeySeedError"},
    "keylock.bundle.write": {"KeySeedError"},
}


def _modules():
    """Returns the syntax trees of the client and of everything of keylock that it imports, at any time."""
    trees, waiting = {}, [f"keylock_client.{path.stem}" for path in CLIENT.glob("*.py") if path.stem != "__init__"]
    while waiting:
        name = waiting.pop()
        if name in trees or not name.startswith(("keylock.", "keylock_client.")):
            continue
        found = importlib.util.find_spec(name)
        if found is None or "_pb2" in name:
            continue
        tree = trees[name] = ast.parse(Path(found.origin).read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                waiting += [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom):
                # A name of a package may be a module of it.
                waiting.append(node.module)
                waiting += [f"{node.module}.{one.name}" for one in node.names if _is_module(node.module, one.name)]
    return trees


def _is_module(package, name):
    try:
        return importlib.util.find_spec(f"{package}.{name}") is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _made(tree):
    """Returns the names of all errors of ours that a module makes."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {getattr(one, "id", getattr(one, "attr", "")) for one in calls}
    return {
        name
        for name in names
        for home in (errors, general)
        if isinstance(getattr(home, name, None), type) and issubclass(getattr(home, name), general.KeylockError)
    }


def test_every_error_that_the_client_raises_is_in_its_namespace():
    trees = _modules()
    assert {"keylock.imaging.decoding", "keylock.licensing.receipts", "keylock.transparency.proofs"} <= set(trees)
    missing = {name: made for name, tree in trees.items() if (made := _made(tree) - set(errors.__all__))}
    assert missing == NOT_CALLED


def test_errors_are_the_same_by_every_name():
    for name in errors.__all__:
        assert getattr(keylock_client, name) is getattr(errors, name)
        assert name in keylock_client.__all__
        if hasattr(general, name):
            assert getattr(general, name) is getattr(errors, name)


def test_one_clause_catches_everything():
    found = [getattr(errors, name) for name in errors.__all__]
    for one in found:
        if issubclass(one, Exception):
            assert issubclass(one, keylock_client.KeylockError)


def test_the_client_tells_its_version():
    from keylock import __version__

    assert keylock_client.__version__ == __version__
