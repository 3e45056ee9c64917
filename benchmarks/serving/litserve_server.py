"""Captum behind LitServe, as a team would write it.

python benchmarks/serving/litserve_server.py FOLDER SIDE PORT float32|bfloat16
"""

import base64
import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np
from material import Material

_MOST = 32
# Without waiting, LitServe asks an empty queue again and again, and takes a core from whatever else runs.
_WAIT_S = 0.002


class Explainer(litserve.LitAPI):
    """Explains images that come as base64; what comes within a moment is one batch."""

    def __init__(self, material: Material, *, bfloat16: bool) -> None:
        super().__init__(max_batch_size=_MOST, batch_timeout=_WAIT_S)
        self._material, self._bfloat16 = material, bfloat16

    def setup(self, device: str) -> None:
        """Load the network, in the process that computes."""
        from eager import Eager

        self._model = Eager(self._material, bfloat16=self._bfloat16)
        self._model.answer("grad_cam", self._material.images()[:1])

    def decode_request(self, request: dict[str, str], **_kwargs: object) -> tuple[str, Any]:
        """Return task and image."""
        return request["task"], np.frombuffer(base64.b64decode(request["image"]), np.float32)

    def batch(self, inputs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Leave them as they are: they may have several tasks."""
        return inputs

    def predict(self, x: list[tuple[str, Any]], **_kwargs: object) -> list[dict[str, Any]]:
        """Answer all images of each task in one batch."""
        answers: list[dict[str, Any]] = [{} for _ in x]
        for task in {task for task, _ in x}:
            places = [place for place, (wanted, _) in enumerate(x) if wanted == task]
            logits, maps = self._model.answer(task, np.stack([x[place][1] for place in places]))
            assert logits is not None
            for row, place in enumerate(places):
                answers[place] = {"logits": logits[row], "map": None if maps is None else maps[row]}
        return answers

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Leave them as they are."""
        return output

    def encode_response(self, output: dict[str, Any], **_kwargs: object) -> dict[str, Any]:
        """Return logits as numbers and the map as base64."""
        answer: dict[str, Any] = {"logits": output["logits"].tolist()}
        if output["map"] is not None:
            answer |= {"shape": output["map"].shape, "map": base64.b64encode(output["map"].tobytes()).decode()}
        return answer


if __name__ == "__main__":
    explainer = Explainer(Material(Path(sys.argv[1]), int(sys.argv[2])), bfloat16=sys.argv[4] == "bfloat16")
    server = litserve.LitServer(explainer, accelerator="cpu", timeout=300)
    server.run(host="127.0.0.1", port=int(sys.argv[3]), generate_client_file=False, log_level="warning")
