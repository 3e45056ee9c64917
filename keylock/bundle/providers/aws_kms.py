"""AWS Key Management Service: the data key is encrypted and decrypted there. Needs the `aws` extra.

The digest of the context is the encryption context, which the service binds and writes to its own log.

References:
    AWS KMS API, Encrypt and Decrypt.
"""

import hashlib
from typing import Annotated, Any, ClassVar, Literal

from cryptography.exceptions import InvalidTag
from pydantic import Field

from keylock.bundle.providers.base import DATA_KEY_BYTES, Entry, Provider, decode, new_data_key
from keylock.crypto.signing import encode_base64url
from keylock.errors import UnsealError

__all__ = ["AwsKms", "AwsKmsEntry"]


class AwsKmsEntry(Entry):
    """Under which key of the service a data key was encrypted."""

    kind: ClassVar[str] = "a key of AWS KMS"
    give: ClassVar[str] = "the key provider aws-kms:KEY"

    name: Literal["aws-kms"] = "aws-kms"
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9:/_-]+$", max_length=2048)]
    wrapped: Annotated[str, Field(max_length=8192)]


class AwsKms(Provider[AwsKmsEntry]):
    """A symmetric key of the service. Region and credentials are found as boto3 finds them."""

    __slots__ = ("_client", "_key")

    entry = AwsKmsEntry

    def __init__(self, key: str) -> None:
        """Makes the client; nothing is sent yet.

        Args:
            key: Id, ARN or `alias/NAME` of the key.

        Raises:
            UnsealError: If boto3 is not installed or finds no region.
        """
        try:
            import boto3
            import botocore.exceptions as problems
        except ImportError:
            raise UnsealError(
                "the key provider aws-kms needs boto3: pip install '.[aws]'"
            ).for_missing_extra() from None
        self._key = key
        try:
            self._client: Any = boto3.client("kms")
        except (problems.BotoCoreError, ValueError):
            raise UnsealError("AWS KMS cannot be used here: set AWS_REGION and the credentials") from None

    @property
    def name(self) -> str:
        """Names it in errors."""
        return f"the AWS KMS key {self._key}"

    def wrap(self, context: bytes) -> tuple[AwsKmsEntry, bytearray]:
        """Has a new data key encrypted."""
        key = new_data_key()
        answer = self._ask("encrypt", KeyId=self._key, Plaintext=bytes(key), EncryptionContext=_context(context))
        return AwsKmsEntry(key=self._key, wrapped=encode_base64url(answer["CiphertextBlob"])), key

    def unwrap(self, entry: AwsKmsEntry, context: bytes) -> bytearray:
        """Has a data key decrypted."""
        wrapped = decode(entry.wrapped)
        answer = self._ask("decrypt", KeyId=self._key, CiphertextBlob=wrapped, EncryptionContext=_context(context))
        key = bytearray(answer["Plaintext"])
        if len(key) != DATA_KEY_BYTES:
            raise UnsealError(f"{self.name} gives something that is not a key")
        return key

    def _ask(self, operation: str, **arguments: object) -> Any:  # noqa: ANN401 - boto3 has no types
        import botocore.exceptions as problems

        try:
            return getattr(self._client, operation)(**arguments)
        except problems.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "unknown"))
            if code in {"InvalidCiphertextException", "IncorrectKeyException"}:
                raise InvalidTag from None
            raise UnsealError(f"{self.name} cannot be used ({code}): check the key and the permissions") from None
        except problems.BotoCoreError as error:
            raise UnsealError(f"AWS KMS cannot be reached ({type(error).__name__}): check region and network") from None

    def __repr__(self) -> str:
        return f"AwsKms({self._key!r})"


def _context(context: bytes) -> dict[str, str]:
    return {"keylock-sealed-key": hashlib.sha256(context).hexdigest()}
