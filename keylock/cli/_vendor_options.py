"""Options that `serve` and `explain-many` share: whom to trust, what signs receipts, and how graphs are computed."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["IssuersOption", "ReceiptKeyOption", "RuntimeOption", "VariantOption", "VendorHomeOption"]

VendorHomeOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        envvar="KEYLOCK_HOME",
        help="The vendor's directory: trusts its issuer, uses its licenses. [~/.keylock]",
    ),
]
IssuersOption = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Public key trusted to sign the bundle and licenses; may be repeated."),
]
ReceiptKeyOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Key that signs receipts, with its certificate. [receipts.pem in --home]"),
]
RuntimeOption = Annotated[
    str | None,
    typer.Option(metavar="auto|onnxruntime|openvino", help="What computes; auto takes the faster one. [auto]"),
]
VariantOption = Annotated[
    str | None,
    typer.Option(
        metavar="auto|float32|bfloat16|float16|int8",
        help="Precision to compute in, where bundle and processor have it; auto takes the fastest whose maps are "
        "right. [float32]",
    ),
]
