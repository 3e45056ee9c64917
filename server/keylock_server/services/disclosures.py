"""Explanations that somebody has a right to, before they become requests like others.

A disclosure is one image for a license that is entitled to it, with the true map or a refusal. Quota, rate and a
suspension for non-payment do not stop it; the terms of the license for disclosures do.
"""

from keylock.errors import InputError, LicenseError, LicenseReason
from keylock.licensing import License
from keylock.v1 import explanation_pb2 as pb
from keylock_server.transport.fields import at_field

__all__ = ["check_entitled", "request_of"]


def check_entitled(granted: License) -> None:
    """Returns when a license is entitled to disclosures.

    Raises:
        LicenseError: If it is not.
    """
    if granted.disclosure is None:
        raise LicenseError(
            LicenseReason.WITHOUT_DISCLOSURE,
            f"the license {granted.id} is not entitled to disclosures: ask the vendor for the entitlement",
        )


def request_of(message: pb.DiscloseRequest) -> pb.ExplainRequest:
    """Returns the request for an explanation that a disclosure is: of one image, with the prediction of everybody.

    Raises:
        InputError: If it has no image.
    """
    with at_field("image"):
        if message.image.WhichOneof("source") is None:
            raise InputError("the image is empty: set its field encoded or tensor")
    request = pb.ExplainRequest(
        request_id=message.request_id,
        model_name=message.model_name,
        model_version=message.model_version,
        images=[message.image],
        explainer=message.explainer,
        prediction=pb.PREDICTION_KIND_PUBLIC,
    )
    target = message.WhichOneof("target")
    if target == "target_index":
        request.target_index = message.target_index
    elif target == "target_label":
        request.target_label = message.target_label
    return request
