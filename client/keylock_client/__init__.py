"""keylock's client: predictions and explanations from a keylock server, in three lines.

    from keylock_client import Client
    with Client("localhost:8470", license="acme.license") as client:
        client.explain("cat.jpg").save("why.png")

It needs gRPC, NumPy and Pillow, and no machine learning framework.
"""

from typing import TYPE_CHECKING, Any

from keylock import __version__
from keylock_client import _quiet, errors  # noqa: F401 - `_quiet` comes before gRPC
from keylock_client._async import AsyncClient
from keylock_client._health import Health, check_health, wait_until_ready
from keylock_client._limits import RequestLimits
from keylock_client._operators import DEFAULT_ADMIN_TARGET, AdminClient
from keylock_client._settings import DEFAULT_PORT, DEFAULT_TARGET, Tls
from keylock_client._sources import ImageLike
from keylock_client._sync import Client
from keylock_client.charges import Estimate, LicenseInfo, Proof, Quota, Receipt, Usage
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
from keylock_client.explanations import Explained, Explanation, Progress
from keylock_client.results import ClassScore, Explainer, Model, ModelInfo, Prediction

if TYPE_CHECKING:
    from keylock_client._local import LocalModel

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
    """Load what opens bundles when it is first used: whoever asks a server never needs it, and it takes a while."""
    if name != "LocalModel":
        raise AttributeError(f"module 'keylock_client' has no attribute {name!r}")
    from keylock_client._local import LocalModel

    return LocalModel
