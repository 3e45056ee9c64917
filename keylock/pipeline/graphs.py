"""The graphs of a lock: every explainer compiled and proved against torch, and what a manifest says of it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from keylock.bundle import Canary
from keylock.bundle.manifest import ExplainerEntry, VariantEntry
from keylock.errors import ExportError
from keylock.explainers import Explainer
from keylock.export import (
    Secrets,
    compare_variant,
    compile_explainer,
    compile_gradient_sums,
    compile_keyed_prediction,
    compile_prediction,
    keyed_and_keyless_maps,
    make_variant,
    suits,
    surest_images,
    verify_gradient_sums,
    verify_graph,
    verify_keyed_prediction,
    verify_loop,
    verify_prediction,
)
from keylock.loops import Loop
from keylock.training import Lock

__all__ = ["Graphs", "make_graphs"]

_LOG = logging.getLogger(__name__)
_CANARY_IMAGES = 4
_LOOP_IMAGES = 1
_REFUSED = b""
"""Stands for a variant that did not hold for the first key of a lock, so that all its bundles have the same graphs."""


@dataclass
class Graphs:
    """What a bundle gets.

    Attributes:
        prediction: The file of the graph that predicts.
        files: Every graph, by its place in the bundle.
        entries: What the manifest says of each explainer.
        canary: Images with the keyed and keyless maps of the explainers that one graph computes.
        variants: The prediction graph in smaller numbers, by their names.
    """

    prediction: str
    files: dict[str, bytes]
    canary: Canary
    entries: list[ExplainerEntry] = field(default_factory=list)
    variants: dict[str, VariantEntry] = field(default_factory=dict)


def make_graphs(
    lock: Lock,
    images: np.ndarray,
    *,
    secrets: Secrets,
    image_shape: tuple[int, int, int],
    num_classes: int,
    variants: Sequence[str] = (),
    variant_images: np.ndarray | None = None,
    on_step: Callable[[str], None],
    compiled: dict[str, bytes] | None = None,
) -> Graphs:
    """Compile predictions and explainers, and prove all of them.

    Args:
        lock: What `keylock.lock` returned.
        images: Preprocessed images float32 (count, channels, height, width) to prove on.
        secrets: What opens the lock.
        image_shape: (channels, height, width).
        num_classes: How many logits there are.
        variants: Names of `keylock.export.VARIANTS` to make as well; those that lose too much are left out.
        variant_images: Images like `images`, many of them, to make and judge variants on; without them `images`.
        on_step: Hears what is being done.
        compiled: Graphs that were compiled for another key of the same lock, by place; what is missing is added.

    Raises:
        ExportError: The predictions do not compile, or a compiled graph disagrees with torch.
    """
    shared = {} if compiled is None else compiled
    samples = images if variant_images is None else variant_images
    return _Maker(lock, images, secrets, image_shape, num_classes, variants, samples, on_step, shared).make()


class _Maker:
    def __init__(
        self,
        lock: Lock,
        images: np.ndarray,
        secrets: Secrets,
        image_shape: tuple[int, int, int],
        num_classes: int,
        variants: Sequence[str],
        variant_images: np.ndarray,
        on_step: Callable[[str], None],
        compiled: dict[str, bytes],
    ) -> None:
        self._lock, self._images, self._secrets, self._on_step = lock, images, secrets, on_step
        self._shape, self._classes, self._compiled = image_shape, num_classes, compiled
        self._variants = tuple(variants)
        # A quarter of the images gives the ranges, the others judge.
        ranging = np.arange(len(variant_images)) % 4 == 0
        self._ranging, self._judging = variant_images[ranging], variant_images[~ranging]
        self._seen = surest_images(lock.module, images, secrets=secrets, count=_CANARY_IMAGES)
        self._targets = np.full(len(images), -1, dtype=np.int64)
        self._adapter_shapes = None if lock.adapter is None else lock.adapter.shapes()
        self._keyed: dict[str, np.ndarray] = {}
        self._keyless: dict[str, np.ndarray] = {}
        self._files: dict[str, bytes] = {}

    def make(self) -> Graphs:
        self._on_step("compile predictions")
        prediction = "graphs/predict.onnx"
        if prediction not in self._compiled:
            self._compiled[prediction] = compile_prediction(self._lock.module, image_shape=self._shape)
        self._files[prediction] = self._compiled[prediction]
        verify_prediction(self._files[prediction], self._lock.module, self._images)
        variants = self._make_variants("the prediction", prediction, self._variants)
        entries = [self._entry(explainer) for explainer in self._lock.explainers]
        canary = Canary(self._seen, self._keyed, self._keyless)
        return Graphs(prediction, self._files, canary, entries, variants)

    def _entry(self, explainer: Explainer) -> ExplainerEntry:
        """Compile one explainer, or record it without a graph where torch has to run it."""
        self._on_step(f"compile {explainer.name}")
        try:
            if isinstance(explainer, Loop):
                return self._loop(explainer, explainer)
            if explainer.compiled:
                return self._graph(explainer)
        except _NotCompiledError as error:
            _LOG.warning("%s is left to torch and a server without torch does not offer it: %s", explainer.name, error)
        return ExplainerEntry(name=explainer.name, parameters=explainer.parameters, runtime="torch")

    def _graph(self, explainer: Explainer) -> ExplainerEntry:
        place = f"graphs/{explainer.name}.onnx"
        graph = self._compile(explainer, place)
        module, secrets = self._lock.module, self._secrets
        verification = verify_graph(graph, module, explainer, self._images, self._targets, secrets=secrets)
        maps = keyed_and_keyless_maps(graph, self._seen, secrets=secrets)
        self._keyed[explainer.name], self._keyless[explainer.name] = maps
        self._files[place] = graph
        fitting = [name for name in self._variants if suits(name, explainer)]
        return ExplainerEntry(
            name=explainer.name,
            parameters=explainer.parameters,
            graph=place,
            max_difference=verification.max_difference,
            pcc_to_reference=verification.pcc_minimum,
            variants=self._make_variants(explainer.name, place, fitting),
        )

    def _make_variants(self, what: str, place: str, names: Sequence[str]) -> dict[str, VariantEntry]:
        """Make variants of a graph on some of the images, and keep those that hold on the others."""
        kept = {}
        for name in names:
            file = place.replace("graphs/", f"graphs/{name}/", 1)
            earlier = self._compiled.get(file)
            if earlier == _REFUSED:
                continue
            self._on_step(f"{name} of {what}")
            try:
                variant = earlier or make_variant(name, self._files[place], self._ranging)
                figures = compare_variant(variant, self._files[place], self._judging, secrets=self._secrets)
                shortfall = figures.shortfall or self._difference(what, variant)
            except ExportError as error:
                shortfall = error.message
            if shortfall is None:
                self._files[file] = self._compiled[file] = variant
                kept[name] = VariantEntry(graph=file, **asdict(figures))
            elif earlier is None:
                self._compiled[file] = _REFUSED
                _LOG.warning("%s of %s is left out: %s", name, what, shortfall)
            else:
                raise ExportError(
                    f"{name} of {what} holds for one key of the lock and not for another ({shortfall}): "
                    f"leave {name} out of the variants"
                )
        return kept

    def _difference(self, name: str, variant: bytes) -> str | None:
        """Return why a server that looks at its canary would not call itself well with a variant."""
        if name not in self._keyed:
            return None
        canary = Canary(self._seen, self._keyed, self._keyless)
        keyed, keyless = keyed_and_keyless_maps(variant, canary.images, secrets=self._secrets)
        return canary.difference(name, keyed=keyed, keyless=keyless)

    def _loop(self, explainer: Explainer, loop: Loop) -> ExplainerEntry:
        predictions = self._keyed_predictions()
        place, others = (self._gradient_sums(), predictions) if loop.reads == "gradient" else (predictions, None)
        few, targets = self._images[:_LOOP_IMAGES], self._targets[:_LOOP_IMAGES]
        verification = verify_loop(
            self._files[place],
            self._lock.module,
            explainer,
            few,
            targets,
            predictions=None if others is None else self._files[others],
            secrets=self._secrets,
        )
        return ExplainerEntry(
            name=explainer.name,
            parameters=explainer.parameters,
            runtime="loop",
            graph=place,
            predictions=others,
            max_difference=verification.max_difference,
            pcc_to_reference=verification.pcc_minimum,
        )

    def _keyed_predictions(self) -> str:
        place = "graphs/keyed_predict.onnx"
        if place not in self._files:
            graph = self._once(
                place,
                lambda: compile_keyed_prediction(
                    self._lock.module,
                    image_shape=self._shape,
                    num_classes=self._classes,
                    adapter_shapes=self._adapter_shapes,
                ),
            )
            verify_keyed_prediction(graph, self._lock.module, self._images, secrets=self._secrets)
            self._files[place] = graph
        return place

    def _gradient_sums(self) -> str:
        place = "graphs/gradient_sums.onnx"
        if place not in self._files:
            graph = self._once(
                place,
                lambda: compile_gradient_sums(
                    self._lock.module,
                    image_shape=self._shape,
                    num_classes=self._classes,
                    adapter_shapes=self._adapter_shapes,
                ),
            )
            verify_gradient_sums(graph, self._lock.module, self._images, self._targets, secrets=self._secrets)
            self._files[place] = graph
        return place

    def _compile(self, explainer: Explainer, place: str) -> bytes:
        return self._once(
            place,
            lambda: compile_explainer(
                self._lock.module,
                explainer,
                image_shape=self._shape,
                num_classes=self._classes,
                adapter_shapes=self._adapter_shapes,
            ),
        )

    def _once(self, place: str, compile_graph: Callable[[], bytes]) -> bytes:
        """Return the graph of a place, compiled now or for an earlier key."""
        if place not in self._compiled:
            try:
                self._compiled[place] = compile_graph()
            except ExportError as error:
                raise _NotCompiledError(error.message) from error
        return self._compiled[place]


class _NotCompiledError(Exception):
    """An explainer that has no graph, which is no reason not to publish."""
