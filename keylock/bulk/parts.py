"""The Parquet file of a block: a row for each image, with its map and prediction, or the reason why there is none."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ArrowException, parquet

from keylock.crypto.digests import digest_of_array
from keylock.files.atomic import PRIVATE, replacing

__all__ = [
    "MAPS",
    "Explained",
    "Predicted",
    "Row",
    "digest_of_map",
    "explained_in",
    "failures_of",
    "read_charged",
    "read_maps",
    "rows_of",
    "write_part",
]

MAPS: Final = "map"
"""The column with the maps."""

_REPEATED: Final = ["label", "target_label", "error"]
_EXPLAINED: Final = "explained"
_ABOUT: Final = b"keylock"


@dataclass(frozen=True, slots=True)
class Predicted:
    """What one image is taken for.

    Attributes:
        label: Of the most probable class.
        index: Its index.
        probability: Its probability.
        logits: float32 `(classes,)`.
    """

    label: str
    index: int
    probability: float
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Explained:
    """Why.

    Attributes:
        saliency: The elements of the map `(height, width)`.
        scaling: Scale and offset that make values of the elements; None where they are the values.
        label: The class that was explained.
        index: Its index.
        probability: Its probability.
        keyed: Whether the map is a true one.
    """

    saliency: NDArray[Any]
    scaling: tuple[float, float] | None
    label: str
    index: int
    probability: float
    keyed: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a block.

    Attributes:
        index: Its place among all images.
        path: Its file, or its row in a Parquet file.
        image_digest: `sha256:` and the digest of its file.
        predicted: What it is taken for; None where it could not be decoded.
        explained: Why; None also where its prediction does not meet the condition of the job.
        error: The reason why it could not be decoded; None where it was.
    """

    index: int
    path: str
    image_digest: str
    predicted: Predicted | None = None
    explained: Explained | None = None
    error: str | None = None


def write_part(path: Path, rows: Sequence[Row], about: dict[str, str], *, blank: NDArray[Any]) -> None:
    """Writes the file of a block, which is whole and on the disk afterwards.

    Args:
        path: Where to.
        rows: The images in their order, at least one.
        about: What all of them have in common.
        blank: An array of the type and the shape of maps `(height, width)`: the column with maps has them in every
            block, also in one without any, so that the files of a job can be read as one table.

    Raises:
        OSError: If it cannot be written.
    """
    seen, found = [row.predicted for row in rows], [row.explained for row in rows]
    columns: dict[str, Any] = {
        "index": pa.array([row.index for row in rows], pa.int64()),
        "path": pa.array([row.path for row in rows], pa.string()),
        "image_digest": pa.array([row.image_digest for row in rows], pa.string()),
        "label": pa.array([one and one.label for one in seen], pa.string()),
        "label_index": pa.array([one and one.index for one in seen], pa.int32()),
        "probability": pa.array([one and one.probability for one in seen], pa.float32()),
        "logits": pa.array([one and one.logits for one in seen], pa.list_(pa.float32())),
        _EXPLAINED: pa.array([one is not None for one in found], pa.bool_()),
        "target_label": pa.array([one and one.label for one in found], pa.string()),
        "target_index": pa.array([one and one.index for one in found], pa.int32()),
        "target_probability": pa.array([one and one.probability for one in found], pa.float32()),
        "keyed": pa.array([one and one.keyed for one in found], pa.bool_()),
        MAPS: _column_of_maps([None if one is None else one.saliency for one in found], blank),
        "map_scale": pa.array([one and one.scaling and one.scaling[0] for one in found], pa.float64()),
        "map_offset": pa.array([one and one.scaling and one.scaling[1] for one in found], pa.float64()),
        "error": pa.array([row.error for row in rows], pa.string()),
    }
    table = pa.table(columns).replace_schema_metadata({_ABOUT + b"." + k.encode(): v for k, v in about.items()})
    with replacing(path, mode=PRIVATE) as unfinished:
        # Maps are numbers with noise in their last bits: a higher level takes longer and saves nothing.
        parquet.write_table(table, unfinished, compression="zstd", compression_level=1, use_dictionary=_REPEATED)
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())


def read_maps(path: Path) -> list[tuple[str, NDArray[Any] | None]]:
    """Returns the digest of each image of a block and the elements of its map, None where it has none.

    Raises:
        OSError: If the file cannot be read, or is not that of a block.
    """
    return [(digest, saliency) for digest, saliency, _ in _read(path)]


def read_charged(path: Path) -> list[tuple[str, NDArray[Any] | None]]:
    """Returns the same of the images alone that a receipt is about: those that could be decoded.

    Raises:
        OSError: If the file cannot be read, or is not that of a block.
    """
    return [(digest, saliency) for digest, saliency, is_decoded in _read(path) if is_decoded]


def _read(path: Path) -> list[tuple[str, NDArray[Any] | None, bool]]:
    """Returns digest, elements of the map, and whether it could be decoded, of each image of a block."""
    try:
        table = parquet.read_table(path, columns=["image_digest", MAPS, "error"])
        digests = table.column("image_digest").to_pylist()
        decoded = table.column("error").is_null().to_pylist()
        maps = table.column(MAPS).combine_chunks()
        elements = maps.storage.values.to_numpy(zero_copy_only=False).reshape(-1, *maps.type.shape)
        there = maps.is_valid().to_pylist()
    except (ArrowException, KeyError, AttributeError, ValueError) as error:
        raise OSError(f"{path} is not the file of a block") from error
    found = zip(digests, elements, there, decoded, strict=True)
    return [(digest, saliency if is_there else None, is_decoded) for digest, saliency, is_there, is_decoded in found]


def digest_of_map(saliency: Any) -> str:  # noqa: ANN401 - an array of one of three types
    """Returns the digest of a map `(height, width)`, as receipts have it."""
    elements = np.ascontiguousarray(saliency, saliency.dtype.newbyteorder("<"))
    return digest_of_array(saliency.dtype.name, saliency.shape, elements.tobytes())


def failures_of(path: Path) -> list[dict[str, Any]]:
    """Returns the images of a block that could not be decoded, with index, path and error."""
    table = parquet.read_table(path, columns=["index", "path", "error"])
    found: list[dict[str, Any]] = table.filter(table.column("error").is_valid()).to_pylist()
    return found


def explained_in(path: Path) -> int:
    """Returns how many images of a block have a map."""
    return sum(parquet.read_table(path, columns=[_EXPLAINED]).column(_EXPLAINED).to_pylist())


def rows_of(path: Path) -> int | None:
    """Returns how many rows the file of a block has; None where it is not whole."""
    try:
        count: int = parquet.read_metadata(path).num_rows
    except (OSError, ArrowException):
        return None
    return count


def _column_of_maps(maps: Sequence[NDArray[Any] | None], blank: NDArray[Any]) -> Any:  # noqa: ANN401 - no type stubs
    """Returns maps of one shape as a column of tensors, so that every reader of Arrow knows their shape."""
    elements = np.stack([blank if one is None else one for one in maps])
    missing = pa.array([one is None for one in maps], pa.bool_())
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(elements.dtype), blank.shape)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(elements.reshape(-1)), type=kind.storage_type, mask=missing)
    return pa.ExtensionArray.from_storage(kind, storage)
