"""Bundles as MLflow models: predictions for everybody, through MLflow's own interface (`pyfunc`).

    from keylock_client.mlflow import save_model
    save_model("shapes.klb", "model")

    import mlflow
    mlflow.pyfunc.load_model("model").predict(pixels)

What is saved holds neither the sealed key nor the sealed delta, so it predicts, and can explain nothing truly. It needs
the extra `mlflow`, which also brings what predicts.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from keylock.bundle import Bundle, open_bundle
from keylock.bundle.manifest import DELTA_FILE, SEALED_KEY_FILE
from keylock.bundle.write import place
from keylock.errors import InputError
from keylock_client._local import LocalModel

# Before MLflow is imported, which sends what its functions are called with, and from where, to its makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models.signature import ModelSignature

__all__ = ["PredictionModel", "log_model", "save_model"]

_DISTRIBUTIONS: Final = ("cryptography", "numpy", "pandas", "Pillow", "pydantic", "safetensors")
"""What predicting needs beside ONNX Runtime. Not `keylock`: another project has that name on PyPI."""


class PredictionModel:
    """What MLflow loads: pixels in, a table of predictions out."""

    def __init__(self, model: LocalModel) -> None:
        """Takes a model that was opened."""
        self._model = model

    def predict(self, model_input: NDArray[Any], params: dict[str, Any] | None = None) -> "pd.DataFrame":
        """Predicts a batch.

        Args:
            model_input: Pixels, uint8 (batch, height, width, 3), or (batch, height, width) for a model of grey pictures
                (uint16 where it takes more than eight bits), of any height and width.
            params: Not used; MLflow passes it.

        Returns:
            A row for each picture, in their order: `label`, `index` of the class, and its `probability` from 0 to 1.

        Raises:
            InputError: The batch has another number of dimensions.
            TensorError: The pixels are of another type or shape.
        """
        import pandas as pd

        preprocessing = self._model.info.preprocessing
        pixels = np.asarray(model_input)
        wanted = 4 if preprocessing.channels > 1 else 3
        if pixels.ndim != wanted:
            shape = "(batch, height, width, 3)" if wanted == 4 else "(batch, height, width)"
            raise InputError(f"expected a batch of pixels of shape {shape}, not {pixels.shape}")
        found = self._model.predict(list(pixels), bits=preprocessing.bits) if len(pixels) else []
        return pd.DataFrame(
            {
                "label": pd.Series([one.label for one in found], dtype="object"),
                "index": np.array([one.index for one in found], np.int64),
                "probability": np.array([one.probability for one in found], np.float64),
            }
        )


def save_model(
    bundle: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    requirements: Sequence[str] = (),
    **options: Any,  # noqa: ANN401 - those of mlflow.pyfunc.save_model
) -> None:
    """Saves a bundle as an MLflow model in a folder.

    Args:
        bundle: A bundle, or a public copy: a folder or a file `.klb`.
        path: The folder, which must not be there.
        requirements: What an environment for the model needs beside the packages that predict; name there where keylock
            comes from, for example the address of its wheel.
        options: More of `mlflow.pyfunc.save_model`, for example `metadata`.

    Raises:
        BundleError: The bundle is refused.
        InputError: The folder is there, or MLflow is not installed.
    """
    pyfunc = _pyfunc()
    if os.path.lexists(path):
        raise InputError(f"{os.fspath(path)} exists: choose another folder for the MLflow model")
    with _prepared(bundle, requirements, options) as given:
        pyfunc.save_model(path=os.fspath(path), **given)


def log_model(
    bundle: str | os.PathLike[str],
    name: str,
    *,
    requirements: Sequence[str] = (),
    **options: Any,  # noqa: ANN401 - those of mlflow.pyfunc.log_model
) -> Any:  # noqa: ANN401 - MLflow has no type for it without importing it
    """Logs a bundle as an MLflow model in the run that is active.

    Args:
        bundle: As of `save_model`.
        name: Of the model.
        requirements: As of `save_model`.
        options: More of `mlflow.pyfunc.log_model`, for example `registered_model_name`.

    Returns:
        What `mlflow.pyfunc.log_model` returns.

    Raises:
        BundleError: The bundle is refused.
        InputError: MLflow is not installed.
    """
    pyfunc = _pyfunc()
    with _prepared(bundle, requirements, options) as given:
        return pyfunc.log_model(name=name, **given)


def _load_pyfunc(path: str) -> PredictionModel:
    """Opens what was saved; MLflow calls this by its name, and every byte is verified."""
    return PredictionModel(LocalModel(path))


@contextmanager
def _prepared(
    bundle: str | os.PathLike[str], requirements: Sequence[str], options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yields what MLflow is given: a copy of the bundle for predictions alone, and what it says of itself."""
    folder = Path(tempfile.mkdtemp(prefix="keylock-mlflow-"))
    try:
        with open_bundle(bundle, trusted=None) as opened:
            manifest = opened.manifest
            files = {
                name: data for name, data in opened.all_files().items() if name not in (DELTA_FILE, SEALED_KEY_FILE)
            }
            copy = folder / f"{manifest.name}.klb"
            place(copy, files)
            about = {
                "name": manifest.name,
                "model_digest": manifest.model_digest,
                "issuer": opened.issuer.key_id,
                "classes": list(manifest.classes),
            }
            yield {
                "signature": _signature(opened),
                "input_example": _example(opened),
                "pip_requirements": [*_requirements(), *requirements],
                **options,
                "metadata": {**options.get("metadata", {}), "keylock": about},
                "loader_module": __name__,
                "data_path": str(copy),
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _signature(bundle: Bundle) -> "ModelSignature":
    """Returns what goes in and comes out. Without one MLflow lets anything through."""
    from mlflow.models.signature import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    preprocessing = bundle.manifest.preprocessing
    shape = (-1, -1, -1) if preprocessing.channels == 1 else (-1, -1, -1, 3)
    pixels = np.dtype(np.uint8 if preprocessing.bits is None else np.uint16)
    columns = (("label", DataType.string), ("index", DataType.long), ("probability", DataType.double))
    return ModelSignature(
        inputs=Schema([TensorSpec(pixels, shape)]),
        outputs=Schema([ColSpec(kind, name) for name, kind in columns]),
    )


def _example(bundle: Bundle) -> NDArray[Any]:
    """Returns a batch of one black picture, small, because MLflow keeps it as text."""
    preprocessing = bundle.manifest.preprocessing
    shape = (1, 8, 8) if preprocessing.channels == 1 else (1, 8, 8, 3)
    return np.zeros(shape, np.uint8 if preprocessing.bits is None else np.uint16)


def _requirements() -> list[str]:
    """Returns the packages that predict, as they are here."""
    return [f"{name}=={version(name)}" for name in (*_DISTRIBUTIONS, _runtime())]


def _runtime() -> str:
    """Returns the distribution of ONNX Runtime that is installed: there are two."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            distribution(name)
            return name
    raise InputError("ONNX Runtime is not installed: pip install '.[mlflow]'").for_missing_extra()


def _pyfunc() -> Any:  # noqa: ANN401 - MLflow is imported when it is used
    try:
        # It warns of type hints of its own.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mlflow.pyfunc
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install '.[mlflow]'").for_missing_extra() from None
    return mlflow.pyfunc
