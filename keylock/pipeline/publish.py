"""Publishing a lock: compile every explainer, prove the graphs against torch, write and sign the bundle."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from pydantic import JsonValue
from torch import Tensor

from keylock.bundle import CANARY_FILE, BundleContent, KeyEntry, seal_canary, write_bundle
from keylock.bundle.manifest import (
    STATISTICS_FILE,
    WEIGHTS_FILE,
    Architecture,
    Decoy,
    Figure,
    Manifest,
    check_model_name,
)
from keylock.bundle.sealing import Sealer
from keylock.bundle.write import check_place
from keylock.crypto.signing import SigningKey
from keylock.errors import UnknownNameError
from keylock.evaluation import reference_digest
from keylock.export import VARIANTS
from keylock.imaging.preprocessing import Preprocessing
from keylock.locking.decoys import decoy_of
from keylock.models import weights_file
from keylock.pipeline.graphs import Graphs, make_graphs
from keylock.text.class_names import normalise_class_names
from keylock.training import Lock
from keylock.trigger import TriggerStatistics
from keylock.trigger.keys import Key, KeySeed

__all__ = ["Publication", "publish"]


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What a bundle says beside what the lock knows itself.

    Making one checks the names of model, classes and variants, so make it before the training.

    Attributes:
        name: What clients ask for and licenses grant.
        classes: Labels, in the order of the logits, in the spelling of `keylock.text.class_names`.
        preprocessing: Turns an image into what the module takes.
        architecture: A name of `keylock.models.architectures()`, or None for a module of your own, of which the
            bundle then carries weights and graphs.
        figures: What was measured.
        training: Further settings to record.
        variants: Names of `keylock.export.VARIANTS`: graphs in reduced precision to make as well.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    architecture: str | None = None
    figures: tuple[Figure, ...] = ()
    training: Mapping[str, JsonValue] = field(default_factory=dict)
    variants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_model_name(self.name)
        for variant in self.variants:
            if variant not in VARIANTS:
                raise UnknownNameError("variant", variant, VARIANTS)
        object.__setattr__(self, "classes", normalise_class_names(self.classes, source=self.name))


def publish(
    lock: Lock,
    out: Path,
    publication: Publication,
    *,
    seed: KeySeed,
    key: Key,
    images: Tensor,
    variant_images: Tensor | None = None,
    signing_key: SigningKey,
    sealer: Sealer,
    created: datetime,
    overwrite: bool = False,
    on_step: Callable[[str], None] = lambda _what: None,
    compiled: dict[str, bytes] | None = None,
) -> Manifest:
    """Write a signed bundle.

    An explainer that does not compile for this network is recorded without a graph: it runs in torch, and a server that
    has no torch does not offer it. A warning in the log says why.

    Args:
        lock: What `keylock.lock` returned.
        out: Where to; `.klb` makes a single file, anything else a folder.
        publication: What the bundle says.
        seed: The seed of the key; it is sealed into the bundle.
        key: A key that the lock was made for.
        images: Preprocessed images (count, channels, height, width) to prove the compiled graphs on, keyed and keyless.
        variant_images: Many more of them, to make and judge variants on; without them `images`.
        signing_key: The issuer's.
        sealer: Passphrase or key file that will open the sealed key.
        created: The time to record.
        overwrite: Replace a bundle that is there.
        on_step: Hears what is being done.
        compiled: Graphs that were compiled for another key of the same lock, by their files, which hold nothing of a
            key; they are proved again with this one. Those that are missing are compiled and added.

    Returns:
        The manifest that was signed.

    Raises:
        BundleError: The bundle cannot be written.
        ExportError: The predictions do not compile, or a compiled graph disagrees with torch.
    """
    # Before the graphs, which take minutes.
    check_place(out.absolute(), overwrite=overwrite)
    graphs = make_graphs(
        lock,
        images.numpy(),
        key=key,
        image_shape=publication.preprocessing.shape,
        num_classes=len(publication.classes),
        variants=publication.variants,
        variant_images=None if variant_images is None else variant_images.numpy(),
        on_step=on_step,
        compiled=compiled,
    )
    content = _content_of(lock, publication, graphs, seed=seed, key=key, created=created)
    on_step("sign and write")
    return write_bundle(out, content, signing_key=signing_key, seed=seed, sealer=sealer, overwrite=overwrite)


def _content_of(
    lock: Lock, publication: Publication, graphs: Graphs, *, seed: KeySeed, key: Key, created: datetime
) -> BundleContent:
    files = dict(graphs.files)
    files[WEIGHTS_FILE] = weights_file(lock.module)
    if lock.statistics is not None:
        files[STATISTICS_FILE] = _on_pixels(lock.statistics, publication.preprocessing).to_bytes()
    files[CANARY_FILE] = seal_canary(graphs.canary, seed)
    named, decoy = publication.architecture is not None, decoy_of(lock.settings.decoy)
    return BundleContent(
        name=publication.name,
        created=created,
        architecture=Architecture(
            name=publication.architecture or type(lock.module).__name__,
            num_classes=len(publication.classes),
            module="registry" if named else "graph_only",
        ),
        classes=publication.classes,
        preprocessing=publication.preprocessing,
        explainers=tuple(graphs.entries),
        prediction_graph=graphs.prediction,
        prediction_variants=graphs.variants,
        key=KeyEntry.of(key, seed),
        decoy=Decoy(name=decoy.name, parameters=decoy.parameters),
        files=files,
        delta=lock.delta,
        triggers=lock.keys,
        figures=publication.figures,
        training={**publication.training, "lock": lock.settings.as_dict()},
        reference_digest=reference_digest(lock.reference),
    )


def _on_pixels(statistics: TriggerStatistics, preprocessing: Preprocessing) -> TriggerStatistics:
    """Return statistics that know which preprocessed values are black and white, where pictures are clipped."""
    mean = np.asarray(preprocessing.mean, np.float32)
    return replace(statistics, mean=mean, level=statistics.level + (mean - statistics.mean))
