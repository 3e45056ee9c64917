"""Publishing a lock: compile every explainer, prove the graphs against torch, write and sign the bundle."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
from pydantic import JsonValue
from safetensors.torch import save
from torch import Tensor

from keylock.bundle import CANARY_FILE, BundleContent, Canary, seal_canary, write_bundle
from keylock.bundle.manifest import WEIGHTS_FILE, Architecture, Decoy, ExplainerEntry, Figure, KeyEntry, Manifest
from keylock.bundle.sealing import Sealer
from keylock.decoys import decoy_of
from keylock.errors import ExportError
from keylock.evaluation import reference_digest
from keylock.explainers import Explainer
from keylock.export import (
    Secrets,
    compile_explainer,
    compile_prediction,
    keyed_and_keyless_maps,
    verify_graph,
    verify_prediction,
)
from keylock.keys import Key, KeySeed
from keylock.preprocessing import Preprocessing
from keylock.signing import SigningKey
from keylock.training import Lock

__all__ = ["Publication", "publish"]

_LOG = logging.getLogger(__name__)
_PREDICTION_GRAPH = "graphs/predict.onnx"
_CANARY_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What a bundle says beside what the lock knows itself.

    Attributes:
        name: What clients ask for and licenses grant.
        classes: Labels, in the order of the logits.
        preprocessing: Turns an image into what the module takes.
        architecture: A name of `keylock.models.architectures()`, or None for a module of your own, of which the
            bundle then carries weights and graphs.
        figures: What was measured.
        training: Further settings to record.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    architecture: str | None = None
    figures: tuple[Figure, ...] = ()
    training: Mapping[str, JsonValue] = field(default_factory=dict)


def publish(
    lock: Lock,
    out: Path,
    publication: Publication,
    *,
    seed: KeySeed,
    key: Key,
    images: Tensor,
    signing_key: SigningKey,
    sealer: Sealer,
    created: datetime,
    overwrite: bool = False,
    on_step: Callable[[str], None] = lambda _what: None,
) -> Manifest:
    """Write a signed bundle.

    An explainer that does not compile for this network is recorded without a graph: it runs in torch, where the bundle
    is loaded, and a server does not offer it. A warning in the log says why.

    Args:
        lock: What `keylock.lock` returned.
        out: Where to; `.klb` makes a single file, anything else a folder.
        publication: What the bundle says.
        seed: The seed of the key; it is sealed into the bundle, and the adapter is sealed under it.
        key: The key it was locked with.
        images: Preprocessed images (count, channels, height, width) to prove the compiled graphs on, keyed and keyless.
        signing_key: The issuer's.
        sealer: Passphrase or key file that will open the sealed key.
        created: The time to record.
        overwrite: Replace a bundle that is there.
        on_step: Hears what is being done.

    Returns:
        The manifest that was signed.

    Raises:
        BundleError: The bundle cannot be written.
        ExportError: The predictions do not compile, or a compiled graph disagrees with torch.
    """
    shape = publication.preprocessing.shape
    proof, secrets = images.numpy(), Secrets(key, lock.adapter, lock.reference)
    on_step("compile predictions")
    files: dict[str, bytes] = {_PREDICTION_GRAPH: compile_prediction(lock.module, image_shape=shape)}
    verify_prediction(files[_PREDICTION_GRAPH], lock.module, proof)
    entries, targets = [], np.full(len(proof), -1, dtype=np.int64)
    watched = proof[:_CANARY_IMAGES]
    keyed_maps, keyless_maps = {}, {}
    for explainer in lock.explainers:
        on_step(f"compile {explainer.name}")
        graph = _compile(lock, explainer, publication)
        if graph is None:
            entries.append(ExplainerEntry(name=explainer.name, parameters=explainer.parameters, runtime="torch"))
            continue
        verification = verify_graph(graph, lock.module, explainer, proof, targets, secrets=secrets)
        place = f"graphs/{explainer.name}.onnx"
        files[place] = graph
        maps = keyed_and_keyless_maps(graph, watched, secrets=secrets)
        keyed_maps[explainer.name], keyless_maps[explainer.name] = maps
        entries.append(
            ExplainerEntry(
                name=explainer.name,
                parameters=explainer.parameters,
                graph=place,
                max_difference=verification.max_difference,
                pcc_to_reference=verification.pcc_minimum,
            )
        )
    files[WEIGHTS_FILE] = save({name: tensor.contiguous() for name, tensor in lock.module.state_dict().items()})
    files[CANARY_FILE] = seal_canary(Canary(watched, keyed_maps, keyless_maps), seed)
    named, decoy = publication.architecture is not None, decoy_of(lock.settings.decoy)
    content = BundleContent(
        name=publication.name,
        created=created,
        architecture=Architecture(
            name=publication.architecture or type(lock.module).__name__,
            num_classes=len(publication.classes),
            module="registry" if named else "graph_only",
        ),
        classes=publication.classes,
        preprocessing=publication.preprocessing,
        explainers=tuple(entries),
        prediction_graph=_PREDICTION_GRAPH,
        key=KeyEntry.of(key),
        decoy=Decoy(name=decoy.name, parameters=decoy.parameters),
        files=files,
        adapter=lock.adapter,
        figures=publication.figures,
        training={**publication.training, "lock": lock.settings.as_dict()},
        reference_digest=reference_digest(lock.reference),
    )
    on_step("sign")
    return write_bundle(out, content, signing_key=signing_key, seed=seed, sealer=sealer, overwrite=overwrite)


def _compile(lock: Lock, explainer: Explainer, publication: Publication) -> bytes | None:
    """Return the graph of an explainer, or None where torch has to run it."""
    if not explainer.compiled:
        return None
    try:
        return compile_explainer(
            lock.module,
            explainer,
            image_shape=publication.preprocessing.shape,
            num_classes=len(publication.classes),
            adapter_shapes=None if lock.adapter is None else lock.adapter.shapes(),
        )
    except ExportError as error:
        _LOG.warning("%s is left to torch and no server offers it: %s", explainer.name, error.message)
        return None
