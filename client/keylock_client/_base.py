"""What the two clients share: how they are made, what they remember, and how a failed call becomes an error."""

import os
from collections.abc import Callable, Sequence, Sized
from typing import TYPE_CHECKING, Any, NoReturn, Self

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from keylock.errors import InputError
from keylock.v1 import explanation_pb2
from keylock_client import _exchanges as exchanges
from keylock_client._calls import Call, Memory, Method
from keylock_client._failures import translate, translate_status
from keylock_client._receipts import Trust, verify_receipt
from keylock_client._settings import DEFAULT_TARGET, Settings, Tls, Token, check_timeout, read_environment
from keylock_client._streams import Images, Unreadable
from keylock_client.charges import Receipt
from keylock_client.errors import BadAnswerError, ClientError, ClosedError, RequestRefusedError, SimilarQueriesError
from keylock_client.explanations import Explained
from keylock_client.results import ModelInfo

if TYPE_CHECKING:
    from keylock.crypto.signing import VerifyingKey

__all__ = ["BaseClient"]


class BaseClient:
    """A client without its connection."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        license: str | os.PathLike[str] | None = None,
        timeout_s: float = 30.0,
        tls: Tls | bool | None = None,
        model: str | None = None,
        model_version: str | None = None,
        compression: str | None = None,
        issuer: str | os.PathLike[str] | None = None,
        exchange_tokens: bool = False,
    ) -> None:
        """Make a client. Nothing is sent before the first call, and no environment variable is read.

        Args:
            target: Address of the server, `host:port`; the port is 8470 if left out.
            license: The license the vendor issued: the path of its file, or the token itself. Without one, maps are
                decoys.
            timeout_s: Seconds each call may take, with its retries; of a long list, each of its requests.
            tls: How to encrypt the connection. If left out, it is encrypted unless the server is on this machine.
            model: Name of the model to ask for; the one that is served if left out.
            model_version: Version of the model, the first digits of its digest; the newest one if left out.
            compression: How explanations are compressed on their way: `none`, `gzip` or `deflate`; as the server is set
                if left out.
            issuer: File with the public key (PEM), or keys (JWKS), of the vendor whose receipts are trusted; the issuer
                of the license if left out.
            exchange_tokens: Exchange the license for access tokens that hold for minutes and are sent in its place, so
                that it travels once in a while instead of with every call. With a client certificate they are bound to
                it.

        Raises:
            InputError: The target, the timeout, the compression or the TLS options are unusable.
            LicenseError: The license is neither a token nor a file that holds one.
            SignatureError: The issuer's public key cannot be read.
        """
        self._settings = Settings.make(
            target=target,
            license=license,
            timeout_s=timeout_s,
            tls=tls,
            model=model,
            model_version=model_version,
            compression=compression,
            exchange_tokens=exchange_tokens,
        )
        # Made here, so that a missing file is reported where it is named.
        self._credentials = self._settings.channel_credentials()
        issuers = () if issuer is None else _keys_of(issuer)
        token, encryption = self._settings.token, self._settings.tls
        self._memory = Memory(
            model_name=self._settings.model,
            model_version=self._settings.model_version,
            compression=self._settings.compression,
            trust=Trust.make(issuers, None if token is None else token.reveal()),
            licensed=token is not None,
            exchanges=exchange_tokens and token is not None,
            binds=encryption is not None and encryption.certificate is not None,
        )
        self._methods: dict[Method, Callable[..., Any]] = {}
        self._closed = False

    @classmethod
    def from_environment(cls, **overrides: Any) -> Self:  # noqa: ANN401 - the arguments of the constructor
        """Make a client from environment variables.

        Read are `KEYLOCK_TARGET`, `KEYLOCK_LICENSE` (a token) or `KEYLOCK_LICENSE_FILE`, `KEYLOCK_TIMEOUT_S`,
        `KEYLOCK_TLS` (`on`, `off` or `auto`), `KEYLOCK_TLS_CA` and `KEYLOCK_MODEL`. Empty ones count as absent.

        Args:
            **overrides: Arguments of the constructor, which win over the environment.

        Returns:
            The client.

        Raises:
            InputError: A variable or an argument is unusable.
            LicenseError: The license is neither a token nor a file that holds one.
        """
        return cls(**{**read_environment(os.environ, ignored=overrides.keys()), **overrides})

    def verify_receipt(self, receipt: Receipt | str, *, proof: str | None = None) -> Receipt:
        """Verify a receipt that was kept, without asking the server.

        Receipts of this client's answers were verified when they came; this is for those of yesterday. One under a
        receipt key that the vendor has taken back, as far as this client has heard, holds only with a proof.

        Args:
            receipt: The receipt, or its token.
            proof: The text of a proof that it is in the vendor's log (`keylock audit-log prove`).

        Returns:
            What it says.

        Raises:
            ReceiptError: It does not hold, or neither a license nor `issuer` says whom to trust.
            AuditLogError: It is not shown to be in the log.
        """
        return verify_receipt(receipt, self._memory.trust, proof=proof, revoked=self._memory.revoked)

    def __repr__(self) -> str:
        licensed = "no license" if self._settings.token is None else "licensed"
        transport = "clear text" if self._settings.tls is None else "TLS"
        state = ", closed" if self._closed else ""
        return f"<{type(self).__name__} {self._settings.target}, {transport}, {licensed}{state}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a client holds a connection and cannot be pickled or copied: make one in each process")

    def _method(self, channel: Any, method: Method) -> Callable[..., Any]:  # noqa: ANN401 - a channel of either stack
        """Return the callable of a method. Two threads may make it at once, which does no harm."""
        if method not in self._methods:
            # Answers are taken as bytes, because gRPC logs a traceback when a deserialiser fails.
            kind = channel.stream_stream if method is Method.EXPLAIN_STREAM else channel.unary_unary
            self._methods[method] = kind(method.value, request_serializer=_serialise)
        return self._methods[method]

    def _metadata(self, call: Call) -> tuple[tuple[str, str], ...]:
        """Return what goes along with a call: the license, where one is of use."""
        if self._closed:
            raise _closed()
        return self._settings.metadata(call.access) if call.licensed else ()

    def _read(self, call: Call, data: bytes) -> tuple[Message | None, ClientError | None]:
        """Parse an answer, into a message or into the error to raise in its place."""
        try:
            return call.method.answer.FromString(data), None
        except DecodeError:
            text = f"the server at {self._settings.target} sent an answer that cannot be read"
            return None, BadAnswerError(f"{text}: check that it is a keylock server", request_id=call.request_id)

    def _read_stream(self, call: Call, arrived: bytes | Unreadable | None) -> Message | Unreadable | None:
        """Parse what a stream gave next, where it is an answer."""
        if arrived is None or isinstance(arrived, Unreadable):
            return arrived
        message, failure = self._read(call, arrived)
        if failure is not None:
            raise failure
        return message

    def _images(self, given: object, *, request_id: str | None, bits: int | None, **options: Any) -> Images:  # noqa: ANN401
        """Check the arguments of `explain_many`, before anything is sent."""
        if isinstance(given, (str, bytes, os.PathLike)):
            raise InputError("explain_many takes several images: give a list, or call explain for one")
        total = len(given) if isinstance(given, Sized) else None
        asked = exchanges.explain_options(self._memory, **options)
        return Images(asked, request_id=request_id, total=total, bits=bits)

    def _stream_call(self, images: Images, access: Token | None) -> Call:
        return Call(
            Method.EXPLAIN_STREAM,
            explanation_pb2.ExplainRequest(),
            request_id=images.request_id,
            licensed=True,
            access=access,
        )

    def _opener(self, channel: Any, call: Call) -> Callable[[Any], Any]:  # noqa: ANN401 - as of `_method`
        """Return what opens a stream, given the messages to send."""
        method, metadata = self._method(channel, call.method), self._metadata(call)
        return lambda messages: method(messages, metadata=metadata)

    def _end(self, images: Images, *, all_read: bool) -> None:
        """Return when a stream may end here, which a server must not do before it has answered every image."""
        missing = images.missing(all_read=all_read)
        if missing is not None:
            text = f"the server at {self._settings.target} ended a stream too early ({missing})"
            hint = "ask for them again with the same request id, which costs nothing where they were charged"
            raise BadAnswerError(f"{text}: {hint}", request_id=images.request_id)

    def _take(self, message: Message, images: Images, info: ModelInfo, call: Call) -> Explained | None:
        """Make a result of a message of a stream; None where more of it is to come."""
        assert isinstance(message, explanation_pb2.ExplainStreamResponse)  # noqa: S101 - as the method has it

        def refuse(status: status_pb2.Status, name: str) -> ClientError:
            error = translate_status(
                status, settings=self._settings, timeout_s=self._settings.timeout_s, access=call.access
            )
            if isinstance(error, SimilarQueriesError):
                return exchanges.name_row(error, [name])
            return exchanges.rename_images(error, [name]) if type(error) is RequestRefusedError else error

        memory = self._memory
        return images.receive(
            message,
            info=info,
            trust=memory.trust,
            revoked=memory.revoked,
            expected=memory.signs_receipts,
            refuse=refuse,
        )

    def _limit(self, timeout_s: float | None) -> float:
        return self._settings.timeout_s if timeout_s is None else check_timeout(timeout_s)

    def _failure(self, error: Exception, call: Call, limit: float) -> ClientError:
        """Turn what a call raised into the error to raise in its place."""
        # Both stacks have their own ways to say that the channel was closed under a call; none says anything else.
        if self._closed:
            return _closed()
        if not isinstance(error, grpc.RpcError):
            raise error
        return translate(
            error, settings=self._settings, timeout_s=limit, request_id=call.request_id, access=call.access
        )


def _keys_of(issuer: str | os.PathLike[str]) -> "Sequence[VerifyingKey]":
    # Cryptography takes a while to load, and callers without a license never need it.
    from keylock.crypto.issuers import load_keys

    return load_keys(issuer)


def _closed() -> ClosedError:
    return ClosedError("this client is closed: make a new one")


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()
