"""The graphs of a lock: every explainer compiled and proved against torch, and what a manifest says of it."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from keylock.bundle import Canary
from keylock.bundle.manifest import ExplainerEntry, VariantEntry
from keylock.errors import ExportError
from keylock.explainers import Explainer
from keylock.export import (
    Side,
    VariantFigures,
    Verification,
    compare_variant,
    compile_explainer,
    compile_gradient_sums,
    compile_many,
    compile_prediction,
    explain_graph,
    make_variant,
    suits,
    surest_images,
    verify_gradient_sums,
    verify_graph,
    verify_loop,
    verify_prediction,
)
from keylock.iterative import Loop
from keylock.models import arrays_of
from keylock.training import Lock
from keylock.trigger.keys import Key

__all__ = ["Graphs", "count_steps", "make_graphs", "sides_of"]

_LOG = logging.getLogger(__name__)
_CANARY_IMAGES = 4
_LOOP_IMAGES = 1
_PREDICTION = "graphs/predict.onnx"
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
        variants: The prediction graph in reduced precision, by their names.
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
    key: Key,
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
        key: One that opens the lock.
        image_shape: (channels, height, width).
        num_classes: How many logits there are.
        variants: Names of `keylock.export.VARIANTS` to make as well; those that lose too much are left out.
        variant_images: Images like `images`, many of them, to make and judge variants on; without them `images`.
        on_step: Hears what is done next, `count_steps` times at most.
        compiled: Graphs that were compiled for another key of the same lock, by place; what is missing is added.

    Raises:
        ExportError: The predictions do not compile, or a compiled graph disagrees with torch.
    """
    shared = {} if compiled is None else compiled
    samples = images if variant_images is None else variant_images
    return _Maker(lock, images, key, image_shape, num_classes, variants, samples, on_step, shared).make()


def count_steps(lock: Lock, variants: Sequence[str] = ()) -> int:
    """Return how many steps `make_graphs` takes when every graph can be made; fewer where one cannot.

    Args:
        lock: What `keylock.lock` returned.
        variants: Names of `keylock.export.VARIANTS` to make as well.
    """
    graphs = [one for one in lock.explainers if one.compiled and not isinstance(one, Loop)]
    count = 1 + len(variants) + len(lock.explainers)
    return count + sum(suits(name, explainer) for explainer in graphs for name in variants)


def sides_of(lock: Lock, key: Key) -> tuple[Side, Side]:
    """Return what answers rows with the trigger of a key, and what answers those without.

    The former is proved by the reference itself, with the weights that a server makes of the published ones.
    """
    published = Side(lock.module)
    if lock.delta is None:
        return Side(lock.module, offset=key.reveal()), published
    return Side(lock.reference, weights=lock.delta.added_to(arrays_of(lock.module))), published


class _Maker:
    def __init__(
        self,
        lock: Lock,
        images: np.ndarray,
        key: Key,
        image_shape: tuple[int, int, int],
        num_classes: int,
        variants: Sequence[str],
        variant_images: np.ndarray,
        on_step: Callable[[str], None],
        compiled: dict[str, bytes],
    ) -> None:
        self._lock, self._images, self._on_step = lock, images, on_step
        self._variants, self._compiled = tuple(variants), compiled
        self._compiling: dict[str, Any] = {
            "image_shape": image_shape,
            "num_classes": num_classes,
            "weights": () if lock.delta is None else lock.delta.names,
        }
        self._sides = sides_of(lock, key)
        self._keyed_side, self._keyless_side = self._sides
        self._weights = arrays_of(lock.module)
        # A quarter of the images gives the ranges, the others judge.
        ranging = np.arange(len(variant_images)) % 4 == 0
        self._ranging, self._judging = variant_images[ranging], variant_images[~ranging]
        self._seen = surest_images(self._sides, images, count=_CANARY_IMAGES)
        self._targets = np.full(len(images), -1, dtype=np.int64)
        self._keyed: dict[str, np.ndarray] = {}
        self._keyless: dict[str, np.ndarray] = {}
        self._files: dict[str, bytes] = {}

    def make(self) -> Graphs:
        self._on_step("compile every graph")
        self._compile_all()
        self._files[_PREDICTION] = self._compiled[_PREDICTION]
        for side in self._sides:
            verify_prediction(self._files[_PREDICTION], side, self._images)
        variants = self._make_variants("the prediction", _PREDICTION, self._variants, sides=(self._keyless_side,))
        entries = [self._entry(explainer) for explainer in self._lock.explainers]
        canary = Canary(self._seen, self._keyed, self._keyless)
        return Graphs(_PREDICTION, self._files, canary, entries, variants)

    def _compile_all(self) -> None:
        """Compile at once what no earlier key has compiled; alone the predictions, where some explainer spoils it."""
        if _PREDICTION in self._compiled:
            return
        explainers = [one for one in self._lock.explainers if one.compiled and not isinstance(one, Loop)]
        try:
            prediction, graphs = compile_many(self._lock.module, explainers, **self._compiling)
        except ExportError:
            self._compiled[_PREDICTION] = compile_prediction(self._lock.module, **self._compiling)
            return
        self._compiled[_PREDICTION] = prediction
        self._compiled |= {_file(name): graph for name, graph in graphs.items()}

    def _entry(self, explainer: Explainer) -> ExplainerEntry:
        """Prove the graph of one explainer, or record it without one where torch has to run it."""
        self._on_step(f"prove {explainer.name}")
        try:
            if isinstance(explainer, Loop):
                return self._loop(explainer, explainer)
            if explainer.compiled:
                return self._graph(explainer)
            _LOG.warning(
                "%s is left to torch, so a server without torch does not offer it; its own maps are not locked: "
                "keylock evaluate measures what they tell without the key",
                explainer.name,
            )
        except _NotCompiledError as error:
            _LOG.warning("%s is left to torch and a server without torch does not offer it: %s", explainer.name, error)
        return ExplainerEntry(name=explainer.name, parameters=explainer.parameters, runtime="torch")

    def _graph(self, explainer: Explainer) -> ExplainerEntry:
        place = _file(explainer.name)
        graph = self._compile(place, partial(compile_explainer, explainer=explainer))
        verified = _worst(verify_graph(graph, side, explainer, self._images, self._targets) for side in self._sides)
        self._keyed[explainer.name], self._keyless[explainer.name] = (
            explain_graph(graph, side, self._seen) for side in self._sides
        )
        self._files[place] = graph
        fitting = [name for name in self._variants if suits(name, explainer)]
        return ExplainerEntry(
            name=explainer.name,
            parameters=explainer.parameters,
            graph=place,
            max_difference=verified.max_difference,
            pcc_to_reference=verified.pcc_minimum,
            variants=self._make_variants(explainer.name, place, fitting, sides=self._sides),
        )

    def _make_variants(
        self, what: str, place: str, names: Sequence[str], *, sides: Sequence[Side]
    ) -> dict[str, VariantEntry]:
        """Make variants of a graph on some of the images, and keep those that hold on the others."""
        kept = {}
        for name in names:
            self._on_step(f"{name} of {what}")
            figures = self._make_variant(name, what, place, sides)
            if figures is not None:
                kept[name] = VariantEntry(graph=_variant_file(name, place), **asdict(figures))
        return kept

    def _make_variant(self, name: str, what: str, place: str, sides: Sequence[Side]) -> VariantFigures | None:
        """Make a variant of a graph; return the figures if it holds."""

        def make() -> bytes:
            return make_variant(name, self._files[place], self._ranging, weights=self._weights)

        def judge(variant: bytes) -> tuple[VariantFigures, str | None]:
            figures = compare_variant(variant, self._files[place], self._judging, sides=sides)
            return figures, figures.shortfall or self._difference(what, variant)

        return self._try(_variant_file(name, place), f"{name} of {what}", make, judge)

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

    def _difference(self, name: str, variant: bytes) -> str | None:
        """Return why a server that looks at its canary would not call itself well with a variant."""
        if name not in self._keyed:
            return None
        canary = Canary(self._seen, self._keyed, self._keyless)
        keyed, keyless = (explain_graph(variant, side, canary.images) for side in self._sides)
        return canary.difference(name, keyed=keyed, keyless=keyless)

    def _loop(self, explainer: Explainer, loop: Loop) -> ExplainerEntry:
        """Prove a loop, which asks the graph of predictions, and the graph of sums where it reads gradients."""
        place, others = (self._gradient_sums(), _PREDICTION) if loop.reads == "gradient" else (_PREDICTION, None)
        few, targets = self._images[:_LOOP_IMAGES], self._targets[:_LOOP_IMAGES]
        predictions = None if others is None else self._files[others]
        verified = _worst(
            verify_loop(self._files[place], side, explainer, few, targets, predictions=predictions)
            for side in self._sides
        )
        return ExplainerEntry(
            name=explainer.name,
            parameters=explainer.parameters,
            runtime="loop",
            graph=place,
            predictions=others,
            max_difference=verified.max_difference,
            pcc_to_reference=verified.pcc_minimum,
        )

    def _gradient_sums(self) -> str:
        place = "graphs/gradient_sums.onnx"
        if place not in self._files:
            graph = self._compile(place, compile_gradient_sums)
            for side in self._sides:
                verify_gradient_sums(graph, side, self._images, self._targets)
            self._files[place] = graph
        return place

    def _compile(self, place: str, compile_graph: Callable[..., bytes]) -> bytes:
        """Return the graph of a place, compiled now or before."""
        if place not in self._compiled:
            try:
                self._compiled[place] = compile_graph(self._lock.module, **self._compiling)
            except ExportError as error:
                raise _NotCompiledError(error.message) from error
        return self._compiled[place]


def _worst(verified: Iterable[Verification]) -> Verification:
    """Return the figures of the side that is further from torch."""
    return min(verified, key=lambda one: one.pcc_minimum)


def _file(name: str) -> str:
    return f"graphs/{name}.onnx"


def _variant_file(name: str, place: str) -> str:
    return place.replace("graphs/", f"graphs/{name}/", 1)


class _NotCompiledError(Exception):
    """An explainer that has no graph, which is not a reason not to publish."""
