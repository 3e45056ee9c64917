"""A server with a query guard, of a model that looks at enough pixels to tell pictures apart."""

from types import SimpleNamespace

import pytest
from near_copies import PREPROCESSING, graph

from keylock.bundle import KeyEntry, KeyFile, write_bundle
from keylock.trigger.keys import Key
from keylock_server.guard import Guard, GuardLimits


@pytest.fixture(scope="module")
def pictures(vendor, tiny, tmp_path_factory):
    """A bundle that looks at enough pixels to tell pictures apart."""
    folder = tmp_path_factory.mktemp("pictures")
    key = Key.derive(vendor.seed, shape=PREPROCESSING.shape, std=PREPROCESSING.std)
    (entry, *_) = vendor.content().explainers
    content = vendor.content(
        preprocessing=PREPROCESSING,
        key=KeyEntry.of(key),
        explainers=(entry,),
        files={"graphs/predict.onnx": graph(tiny, explains=False), "graphs/fine.onnx": graph(tiny, explains=True)},
    )
    write_bundle(
        folder / "pictures.klb",
        content,
        signing_key=vendor.signing_key,
        seed=vendor.seed,
        sealer=KeyFile.create(folder / "key"),
    )
    return SimpleNamespace(bundle=folder / "pictures.klb", key_file=folder / "key")


@pytest.fixture
def serve(start_server, pictures):
    """Starts a server that remembers nothing yet."""

    def begin(*, clock=None, window_s=600.0, scores=4, labels=100, **settings):
        limits = GuardLimits(window_s=window_s, scores=scores, labels=labels)
        guard = None if clock is None else Guard(limits, clock)
        told = {
            "query_guard": "limit",
            "query_guard_window_s": window_s,
            "query_guard_scores": scores,
            "query_guard_labels": labels,
        }
        return start_server(bundle=pictures.bundle, key_file=pictures.key_file, guard=guard, **(told | settings))

    return begin
