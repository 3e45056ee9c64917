"""keylock's client: predictions and explanations from a keylock server, in three lines.

    from keylock_client import Client
    with Client("localhost:8470", license="acme.license") as client:
        client.explain("cat.jpg").save("why.png")

It needs gRPC, NumPy and Pillow, loaded with the first name that needs them, and no machine learning framework.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from keylock import __version__
from keylock_client import _quiet, errors  # noqa: F401 - `_quiet` comes before gRPC
from keylock_client.errors import (
    AuditLogError,
    BadAnswerError,
    BadReceiptError,
    BundleError,
    BundleTamperedError,
    ClientError,
    ClosedError,
    ConnectionLostError,
    DeadlineError,
    ImageError,
    InputError,
    KeylockError,
    LicenseError,
    LicenseReason,
    LicenseRefusedError,
    MeteringError,
    OverloadedError,
    QuotaSpentError,
    RateLimitedError,
    ReceiptError,
    RequestIdReusedError,
    RequestRefusedError,
    ServerFaultError,
    ServiceError,
    SignatureError,
    SimilarQueriesError,
    SpendingLimitError,
    TensorError,
    TooLargeError,
    UnknownNameError,
    UnreachableError,
    UnsealError,
    UnsupportedError,
    Violation,
)

if TYPE_CHECKING:
    from keylock_client._async import AsyncClient
    from keylock_client._health import Health, check_health, wait_until_ready
    from keylock_client._limits import RequestLimits
    from keylock_client._local import LocalModel
    from keylock_client._operators import DEFAULT_ADMIN_TARGET, AdminClient
    from keylock_client._settings import DEFAULT_PORT, DEFAULT_TARGET, Tls
    from keylock_client._sources import ImageLike
    from keylock_client._sync import Client
    from keylock_client.charges import Estimate, LicenseInfo, Proof, Quota, Receipt, Usage
    from keylock_client.explanations import Explained, Explanation, Progress
    from keylock_client.results import ClassScore, Explainer, Model, ModelInfo, Prediction

# Loaded when first used, because a client is often imported by programs that make none, or not yet.
_HOMES: Final = {
    "AdminClient": "_operators",
    "AsyncClient": "_async",
    "check_health": "_health",
    "ClassScore": "results",
    "Client": "_sync",
    "DEFAULT_ADMIN_TARGET": "_operators",
    "DEFAULT_PORT": "_settings",
    "DEFAULT_TARGET": "_settings",
    "Estimate": "charges",
    "Explained": "explanations",
    "Explainer": "results",
    "Explanation": "explanations",
    "Health": "_health",
    "ImageLike": "_sources",
    "LicenseInfo": "charges",
    "LocalModel": "_local",
    "Model": "results",
    "ModelInfo": "results",
    "Prediction": "results",
    "Progress": "explanations",
    "Proof": "charges",
    "Quota": "charges",
    "Receipt": "charges",
    "RequestLimits": "_limits",
    "Tls": "_settings",
    "Usage": "charges",
    "wait_until_ready": "_health",
}
# Modules that could always be named after `import keylock_client`.
_MODULES: Final = ("charges", "explanations", "results")

__all__ = [
    "DEFAULT_ADMIN_TARGET",
    "DEFAULT_PORT",
    "DEFAULT_TARGET",
    "AdminClient",
    "AsyncClient",
    "AuditLogError",
    "BadAnswerError",
    "BadReceiptError",
    "BundleError",
    "BundleTamperedError",
    "ClassScore",
    "Client",
    "ClientError",
    "ClosedError",
    "ConnectionLostError",
    "DeadlineError",
    "Estimate",
    "Explained",
    "Explainer",
    "Explanation",
    "Health",
    "ImageError",
    "ImageLike",
    "InputError",
    "KeylockError",
    "LicenseError",
    "LicenseInfo",
    "LicenseReason",
    "LicenseRefusedError",
    "LocalModel",
    "MeteringError",
    "Model",
    "ModelInfo",
    "OverloadedError",
    "Prediction",
    "Progress",
    "Proof",
    "Quota",
    "QuotaSpentError",
    "RateLimitedError",
    "Receipt",
    "ReceiptError",
    "RequestIdReusedError",
    "RequestLimits",
    "RequestRefusedError",
    "ServerFaultError",
    "ServiceError",
    "SignatureError",
    "SimilarQueriesError",
    "SpendingLimitError",
    "TensorError",
    "Tls",
    "TooLargeError",
    "UnknownNameError",
    "UnreachableError",
    "UnsealError",
    "UnsupportedError",
    "Usage",
    "Violation",
    "__version__",
    "check_health",
    "errors",
    "wait_until_ready",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute can be anything
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    # Found at once from now on.
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
