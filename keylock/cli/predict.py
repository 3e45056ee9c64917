"""`keylock predict IMAGE...`: what a served model takes images for. Needs no license."""

from keylock.cli._connection import (
    ImagesArgument,
    ServerOption,
    TimeoutOption,
    TlsCaOption,
    TlsOption,
    connect,
    read_images,
)
from keylock.cli._console import JsonOption, print_json, print_table

__all__ = ["predict"]


def predict(
    images: ImagesArgument,
    server: ServerOption = None,
    timeout_s: TimeoutOption = None,
    tls: TlsOption = None,
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a server to classify images. Predictions need no license."""
    with connect(server=server, timeout_s=timeout_s, tls=tls, tls_ca=tls_ca) as client:
        predictions = client.predict(read_images(images))
    answers = list(zip(images, predictions, strict=True))
    if as_json:
        print_json({"predictions": [{"image": image, **prediction.to_dict()} for image, prediction in answers]})
        return
    rows = [(image, prediction.label, f"{prediction.probability:.1%}") for image, prediction in answers]
    print_table(("image", "label", "probability"), rows)
