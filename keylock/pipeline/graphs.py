"""The graphs of a lock: every explainer compiled and proved against torch, and what a manifest says of it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from keylock.bundle import Canary
from keylock.bundle.manifest import ExplainerEntry, VariantEntry
from keylock.errors import ExportError
from keylock.explainers import Explainer
from keylock.export import (
    Secrets,
    VariantFigures,
    compare_variant,
    compile_explainer,
    compile_gradient_sums,
    compile_keyed_prediction,
    compile_mergeable,
    compile_mergeable_prediction,
    compile_mergeable_sums,
    compile_prediction,
    keyed_and_keyless_maps,
    make_variant,
    suits,
    surest_images,
    verify_gradient_sums,
    verify_graph,
    verify_keyed_prediction,
    verify_loop,
    verify_mergeable,
    verify_mergeable_sums,
    verify_prediction,
)
from keylock.loops import Loop
from keylock.training import Lock

__all__ = ["Graphs", "count_steps", "make_graphs"]

_LOG = logging.getLogger(__name__)
_CANARY_IMAGES = 4
_LOOP_IMAGES = 1
_REFUSED = b""
"""Stands for a graph that did not hold for the first key of a lock, so that all its bundles have the same graphs."""

_Found = TypeVar("_Found")


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
    mergeable: bool = True,
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
        on_step: Hears what is done next, `count_steps` times at most.
        compiled: Graphs that were compiled for another key of the same lock, by place; what is missing is added.
        mergeable: Make the graphs that a two-factor lock is served with, too; it can be published without.

    Raises:
        ExportError: The predictions do not compile, or a compiled graph disagrees with torch.
    """
    shared = {} if compiled is None else compiled
    samples = images if variant_images is None else variant_images
    return _Maker(lock, images, secrets, image_shape, num_classes, variants, samples, on_step, shared, mergeable).make()


def count_steps(lock: Lock, variants: Sequence[str] = ()) -> int:
    """Return how many steps `make_graphs` takes when every graph can be made; fewer where one cannot.

    Args:
        lock: What `keylock.lock` returned.
        variants: Names of `keylock.export.VARIANTS` to make as well.
    """
    loops = [explainer for explainer in lock.explainers if isinstance(explainer, Loop)]
    graphs = [one for one in lock.explainers if one.compiled and not isinstance(one, Loop)]
    count = 1 + len(variants) + len(lock.explainers)
    count += sum(suits(name, explainer) for explainer in graphs for name in variants)
    # Loops that read the same graph share it.
    return count + (0 if lock.adapter is None else len(graphs) + len({loop.reads for loop in loops}))


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
        mergeable: bool,
    ) -> None:
        self._lock, self._images, self._secrets, self._on_step = lock, images, secrets, on_step
        self._shape, self._classes, self._compiled = image_shape, num_classes, compiled
        self._variants, self._mergeable = tuple(variants), mergeable
        # A quarter of the images gives the ranges, the others judge.
        ranging = np.arange(len(variant_images)) % 4 == 0
        self._ranging, self._judging = variant_images[ranging], variant_images[~ranging]
        self._seen = surest_images(lock.module, images, secrets=secrets, count=_CANARY_IMAGES)
        self._targets = np.full(len(images), -1, dtype=np.int64)
        self._adapter_shapes = None if lock.adapter is None else lock.adapter.shapes()
        self._weights = {name: tensor.float().cpu().numpy() for name, tensor in lock.module.state_dict().items()}
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
        graph = self._compile(place, partial(compile_explainer, explainer=explainer))
        module, secrets = self._lock.module, self._secrets
        verification = verify_graph(graph, module, explainer, self._images, self._targets, secrets=secrets)
        maps = keyed_and_keyless_maps(graph, self._seen, secrets=secrets)
        self._keyed[explainer.name], self._keyless[explainer.name] = maps
        self._files[place] = graph
        fitting = [name for name in self._variants if suits(name, explainer)]
        mergeable = self._make_mergeable(explainer.name, place, partial(compile_mergeable, explainer=explainer))
        return ExplainerEntry(
            name=explainer.name,
            parameters=explainer.parameters,
            graph=place,
            mergeable=mergeable,
            max_difference=verification.max_difference,
            pcc_to_reference=verification.pcc_minimum,
            variants=self._make_variants(explainer.name, place, fitting, mergeable=mergeable),
        )

    def _make_mergeable(
        self,
        what: str,
        place: str,
        compile_graph: Callable[..., bytes],
        verify: Callable[..., None] = verify_mergeable,
    ) -> str | None:
        """Compile a graph of a two-factor lock once more, with the adapted layers' weights as inputs.

        Args:
            what: What it is, in words.
            place: The graph that adds the adapter row by row.
            compile_graph: Takes the module, the shape of images, the number of classes and the layers.
            verify: Compares both.

        Returns:
            Its file, or None where the lock has no adapter or the graph does not hold.
        """
        if self._lock.adapter is None or not self._mergeable:
            return None
        layers, weights = self._lock.adapter.layers, self._weights

        def make() -> bytes:
            return compile_graph(self._lock.module, image_shape=self._shape, num_classes=self._classes, layers=layers)

        def judge(graph: bytes) -> tuple[bool, None]:
            verify(graph, self._files[place], self._images, weights=weights, secrets=self._secrets)
            return True, None

        file = place.replace("graphs/", "graphs/mergeable/", 1)
        if file in self._files:
            return file
        self._on_step(f"compile {what} to be merged")
        return file if self._try(file, f"the mergeable graph of {what}", make, judge) else None

    def _make_variants(
        self, what: str, place: str, names: Sequence[str], *, mergeable: str | None = None
    ) -> dict[str, VariantEntry]:
        """Make variants of a graph on some of the images, and keep those that hold on the others."""
        kept = {}
        for name in names:
            self._on_step(f"{name} of {what}")
            figures = self._make_variant(name, what, place, truth=place)
            if figures is None:
                continue
            merging = None
            if mergeable is not None and self._make_variant(name, what, mergeable, truth=place) is not None:
                merging = _variant_file(name, mergeable)
            kept[name] = VariantEntry(graph=_variant_file(name, place), mergeable=merging, **asdict(figures))
        return kept

    def _make_variant(self, name: str, what: str, place: str, *, truth: str) -> VariantFigures | None:
        """Make a variant of a graph, and judge it by another one; return the figures if it holds."""
        weights = None if place == truth else self._weights

        def make() -> bytes:
            return make_variant(name, self._files[place], self._ranging, weights=weights)

        def judge(variant: bytes) -> tuple[VariantFigures, str | None]:
            graph = self._files[truth]
            figures = compare_variant(variant, graph, self._judging, secrets=self._secrets, weights=weights)
            return figures, figures.shortfall or self._difference(what, variant, weights)

        of = what if weights is None else f"{what}, mergeable,"
        return self._try(_variant_file(name, place), f"{name} of {of}", make, judge)

    def _try(
        self,
        file: str,
        what: str,
        make: Callable[[], bytes],
        judge: Callable[[bytes], tuple[_Found, str | None]],
    ) -> _Found | None:
        """Make a graph that a bundle can do without, and keep it if nothing speaks against it.

        Args:
            file: Its place in the bundle.
            what: What it is, for whoever reads that it is left out.
            make: Makes it, unless it was made for another key of the lock.
            judge: Returns what was found, and what speaks against it or None.

        Returns:
            What was found, or None where the graph is left out.

        Raises:
            ExportError: It held for another key of the lock, all of whose bundles have the same graphs.
        """
        earlier = self._compiled.get(file)
        if earlier == _REFUSED:
            return None
        found = None
        try:
            graph = earlier or make()
            found, shortfall = judge(graph)
        except ExportError as error:
            shortfall = error.message
        if shortfall is None:
            self._files[file] = self._compiled[file] = graph
            return found
        if earlier is not None:
            raise ExportError(
                f"{what} holds for one key of the lock and not for another ({shortfall}): publish each key's bundle "
                "from a lock of its own, or without what fails"
            )
        self._compiled[file] = _REFUSED
        _LOG.warning("%s is left out: %s", what, shortfall)
        return None

    def _difference(self, name: str, variant: bytes, weights: Mapping[str, np.ndarray] | None) -> str | None:
        """Return why a server that looks at its canary would not call itself well with a variant."""
        if name not in self._keyed:
            return None
        canary = Canary(self._seen, self._keyed, self._keyless)
        keyed, keyless = keyed_and_keyless_maps(variant, canary.images, secrets=self._secrets, weights=weights)
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
            mergeable=self._mergeable_of_loop(loop, place),
            predictions=others,
            max_difference=verification.max_difference,
            pcc_to_reference=verification.pcc_minimum,
        )

    def _mergeable_of_loop(self, loop: Loop, place: str) -> str | None:
        if loop.reads == "gradient":
            return self._make_mergeable("sums of gradients", place, compile_mergeable_sums, verify_mergeable_sums)
        return self._make_mergeable("keyed predictions", place, compile_mergeable_prediction)

    def _keyed_predictions(self) -> str:
        place = "graphs/keyed_predict.onnx"
        if place not in self._files:
            graph = self._compile(place, compile_keyed_prediction)
            verify_keyed_prediction(graph, self._lock.module, self._images, secrets=self._secrets)
            self._files[place] = graph
        return place

    def _gradient_sums(self) -> str:
        place = "graphs/gradient_sums.onnx"
        if place not in self._files:
            graph = self._compile(place, compile_gradient_sums)
            verify_gradient_sums(graph, self._lock.module, self._images, self._targets, secrets=self._secrets)
            self._files[place] = graph
        return place

    def _compile(self, place: str, compile_graph: Callable[..., bytes]) -> bytes:
        """Return the graph of a place, compiled now or for an earlier key.

        Args:
            place: Its file.
            compile_graph: Takes the module, the shape of images, the number of classes and the adapter's shapes.
        """
        if place not in self._compiled:
            try:
                self._compiled[place] = compile_graph(
                    self._lock.module,
                    image_shape=self._shape,
                    num_classes=self._classes,
                    adapter_shapes=self._adapter_shapes,
                )
            except ExportError as error:
                raise _NotCompiledError(error.message) from error
        return self._compiled[place]


def _variant_file(name: str, place: str) -> str:
    return place.replace("graphs/", f"graphs/{name}/", 1)


class _NotCompiledError(Exception):
    """An explainer that has no graph, which is no reason not to publish."""
