"""The two customers of the quickstart: one with a license and one without ask the running server the same things."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keylock_client import Client

__all__ = ["Answers", "ask"]


@dataclass(frozen=True)
class Answers:
    """What a customer got over gRPC.

    Attributes:
        predicted: Class indices (count,), of `Predict`: without the key, for everybody.
        explained: Class indices (count,) that came with the maps: with the key, for a licensed customer.
        maps: For each explainer's name, (count, h, w).
        keyed: Whether the server says that all maps were made with the key.
    """

    predicted: Tensor
    explained: Tensor
    maps: dict[str, Tensor]
    keyed: bool


def ask(client: Client, images: NDArray[np.uint8], explainers: tuple[str, ...]) -> Answers:
    """Ask for predictions and for the maps of every explainer.

    Args:
        client: With or without a license.
        images: Pixels (count, height, width, 3); they travel as PNG files.
        explainers: Names.

    Raises:
        ClientError: A call failed.
    """
    files = list(images)
    predictions = client.predict(files)
    answers = {name: client.explain(files, explainer=name) for name in explainers}
    first = answers[explainers[0]]
    return Answers(
        predicted=torch.tensor([prediction.index for prediction in predictions]),
        explained=torch.tensor([answer.target.index for answer in first]),
        maps={name: torch.from_numpy(np.stack([one.map for one in found])) for name, found in answers.items()},
        keyed=all(one.keyed for found in answers.values() for one in found),
    )
