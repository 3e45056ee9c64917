"""Every error that a user of the client can meet, in one place.

    ClientError                     a call failed; carries the gRPC status and the request id
    ├── LicenseRefusedError         (LicenseError)  the server refuses the license, or wants one; carries the reason
    ├── QuotaSpentError             (MeteringError) the quota of the license is spent; carries when it is filled again
    ├── RateLimitedError            (MeteringError) the license is used too fast; carries when to come again
    ├── RequestRefusedError         (InputError)    the server refuses what was asked; carries what is wrong with it
    │   └── RequestIdReusedError    the request id stands for another request already
    ├── UnreachableError            (ServiceError)  no server answers at the target
    │   └── ConnectionLostError     the connection was lost before the answer had come
    ├── DeadlineError               (ServiceError)  no answer in time
    ├── OverloadedError             (ServiceError)  the server has too much to do right now
    ├── SimilarQueriesError         (ServiceError)  an image is a near copy of too many others
    ├── ServerFaultError            (ServiceError)  the server failed; carries the id to tell the vendor
    ├── UnsupportedError            (ServiceError)  the server does not offer what was called
    ├── BadAnswerError              (ServiceError)  the answer makes no sense
    ├── BadReceiptError             (ReceiptError)  the receipt of an answer does not hold, or is for another answer
    └── ClosedError                 (ServiceError)  this client was closed

What the caller lets a call spend has an error of its own, which no server sends: `SpendingLimitError` (MeteringError).

Each of them is also one of keylock's general errors, named in brackets, which stand here too (`keylock.errors` draws
their tree). Before anything is sent, an image or an option that cannot be used is an `InputError` (`ImageError`,
`TensorError`, `TooLargeError` or `UnknownNameError`, if it is one of these), a license file without a license a
`LicenseError`, and an issuer's key that cannot be read a `SignatureError`. A receipt or proof that was kept and does
not hold is a `ReceiptError` or an `AuditLogError`. A bundle that `LocalModel` cannot take is a `BundleError`: a
`BundleTamperedError` where something in it was changed, an `UnsealError` where it does not open. `except KeylockError`
covers everything. No message contains the license token.
"""

from dataclasses import dataclass
from datetime import datetime

from keylock.errors import (
    AuditLogError,
    BundleError,
    BundleTamperedError,
    ImageError,
    InputError,
    KeylockError,
    LicenseError,
    LicenseReason,
    MeteringError,
    ReceiptError,
    ServiceError,
    SignatureError,
    TensorError,
    UnknownNameError,
    UnsealError,
)

__all__ = [
    "AuditLogError",
    "BadAnswerError",
    "BadReceiptError",
    "BundleError",
    "BundleTamperedError",
    "ClientError",
    "ClosedError",
    "ConnectionLostError",
    "DeadlineError",
    "ImageError",
    "InputError",
    "KeylockError",
    "LicenseError",
    "LicenseReason",
    "LicenseRefusedError",
    "MeteringError",
    "OverloadedError",
    "QuotaSpentError",
    "RateLimitedError",
    "ReceiptError",
    "RequestIdReusedError",
    "RequestRefusedError",
    "ServerFaultError",
    "ServiceError",
    "SignatureError",
    "SimilarQueriesError",
    "SpendingLimitError",
    "TensorError",
    "TooLargeError",
    "UnknownNameError",
    "UnreachableError",
    "UnsealError",
    "UnsupportedError",
    "Violation",
]


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with a request.

    Attributes:
        field: The part of the request, for example `images[2]` or `explainer`.
        description: What is wrong with it.
    """

    field: str
    description: str


class TooLargeError(InputError):
    """An image is larger than the server takes; it was neither copied nor sent."""


class SpendingLimitError(MeteringError):
    """What the caller lets a call spend (`max_units`) is spent, or might not be enough; what was answered is not lost.

    Attributes:
        max_units: What may be spent.
        spent: What was spent.
    """

    def __init__(self, message: str, *, max_units: int, spent: int) -> None:
        super().__init__(message)
        self.max_units, self.spent = max_units, spent


class ClientError(KeylockError):
    """A call failed.

    Attributes:
        code: Name of the gRPC status, for example `UNAVAILABLE`; empty when the call was never made.
        request_id: The id the request carried; empty if it carried none.
    """

    def __init__(self, message: str, *, code: str = "", request_id: str = "") -> None:
        # Called by name, because the second base of a subclass has a constructor of its own.
        KeylockError.__init__(self, message)
        self.code, self.request_id = code, request_id


class LicenseRefusedError(ClientError, LicenseError):
    """The server refuses the license that was presented, or wants one and none was presented.

    Attributes:
        reason: Why, as a stable value.
        field: The part of the request that needs a license, for example `target_label`; None where it is not one part.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: LicenseReason,
        field: str | None = None,
        code: str = "",
        request_id: str = "",
    ) -> None:
        ClientError.__init__(self, message, code=code, request_id=request_id)
        self.reason, self.field = reason, field


class QuotaSpentError(ClientError, MeteringError):
    """The quota of the license is spent.

    Attributes:
        period: `day`, `month` or `total`; empty if the server does not say.
        limit: Units the license has in that period.
        used: Units of it that are used.
        resets_at: When it is filled again (UTC); None for the total.
    """

    def __init__(
        self,
        message: str,
        *,
        period: str,
        limit: int,
        used: int,
        resets_at: datetime | None,
        code: str = "",
        request_id: str = "",
    ) -> None:
        ClientError.__init__(self, message, code=code, request_id=request_id)
        self.period, self.limit, self.used, self.resets_at = period, limit, used, resets_at


class RateLimitedError(ClientError, MeteringError):
    """The license is used faster than it allows.

    Attributes:
        retry_after_s: When to come again, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float, code: str = "", request_id: str = "") -> None:
        ClientError.__init__(self, message, code=code, request_id=request_id)
        self.retry_after_s = retry_after_s


class RequestRefusedError(ClientError, InputError):
    """The server refuses what was asked.

    Attributes:
        violations: What is wrong, part by part; may be empty.
    """

    def __init__(
        self, message: str, *, violations: tuple[Violation, ...] = (), code: str = "", request_id: str = ""
    ) -> None:
        ClientError.__init__(self, message, code=code, request_id=request_id)
        self.violations = violations


class RequestIdReusedError(RequestRefusedError):
    """The request id stands for another request already: every new request needs a new one."""


class UnreachableError(ClientError, ServiceError):
    """No server answers at the target."""


class ConnectionLostError(UnreachableError):
    """The connection was lost before the answer had come, by a server that ended or a balancer that lost patience.

    The server may have taken the request up and charged it: the same request id again costs nothing then.
    """


class DeadlineError(ClientError, ServiceError):
    """No answer came in time."""


class OverloadedError(ClientError, ServiceError):
    """The server has too much to do right now.

    Attributes:
        retry_after_s: When the server suggests to try again, in seconds; None if it does not say.
    """

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, code: str = "", request_id: str = ""
    ) -> None:
        ClientError.__init__(self, message, code=code, request_id=request_id)
        self.retry_after_s = retry_after_s


class SimilarQueriesError(ClientError, ServiceError):
    """An image is nearly the same as others that were asked about lately, by anybody, and the server answers no more.

    The client does not wait: what helps are labels alone (`Client.label`), time, or a license for similar queries.

    Attributes:
        retry_after_s: When the server suggests to try again, in seconds; None if it does not say.
        labels_left: Whether the server would answer with labels alone.
        row: Which image of the list it is, from 0.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None,
        labels_left: bool,
        row: int,
        code: str = "",
        request_id: str = "",
    ) -> None:
        ClientError.__init__(self, message, code=code, request_id=request_id)
        self.retry_after_s, self.labels_left, self.row = retry_after_s, labels_left, row


class ServerFaultError(ClientError, ServiceError):
    """The server failed while it worked on the request.

    Attributes:
        error_id: The id under which the server logged the fault; empty if it gave none.
    """

    def __init__(self, message: str, *, error_id: str = "", code: str = "", request_id: str = "") -> None:
        ClientError.__init__(self, message, code=code, request_id=request_id)
        self.error_id = error_id


class UnsupportedError(ClientError, ServiceError):
    """The server does not offer what was called."""


class BadAnswerError(ClientError, ServiceError):
    """The answer of the server makes no sense."""


class BadReceiptError(ClientError, ReceiptError):
    """The receipt of an answer does not hold, or is for another answer: do not rely on it, and ask the vendor."""


class ClosedError(ClientError, ServiceError):
    """The client was closed before the call."""
