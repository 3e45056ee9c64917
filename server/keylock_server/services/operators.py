"""What operators do is logged under the name in the certificate they show."""

import logging
from typing import Any, Final

import grpc

__all__ = ["log_change", "operator_of"]

_LOG: Final = logging.getLogger("keylock_server")
_MAX_TEXT: Final = 200


def operator_of(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """Returns the common name in the certificate that a caller shows."""
    names = list(context.auth_context().get("x509_common_name", ()))
    return names[0].decode("utf-8", "replace") if names else "without a name"


def log_change(operator: str, what: str, which: str) -> None:
    """Logs what an operator did.

    Args:
        operator: Who, as `operator_of` says.
        what: What was done, for example `revoked the license`.
        which: To which license, token or model; one that exists, or the id of one.
    """
    _LOG.warning("the operator %r %s %r", operator[:_MAX_TEXT], what, which[:_MAX_TEXT])
