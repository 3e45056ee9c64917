"""What the services of a server work with, made once when it starts."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from keylock.crypto.signing import SigningKey
from keylock.imaging.decoding import ImageLimits
from keylock.licensing import ReceiptIssuer
from keylock_server.auth.authentication import Authenticator
from keylock_server.inference.models import Models
from keylock_server.inference.runtime import ServedModel
from keylock_server.metering.meter import Meter
from keylock_server.metering.response_padding import ResponsePadding
from keylock_server.scheduling.batcher import Batchers
from keylock_server.scheduling.decoder_pool import DecoderPool
from keylock_server.scheduling.decoding import Decoder, DecodingMemory
from keylock_server.services.query_gate import QueryGate
from keylock_server.services.requests import limits_for
from keylock_server.services.transparency import Prover
from keylock_server.settings import ServerSettings
from keylock_server.transport.interceptors import Running

__all__ = ["Parts"]


@dataclass(frozen=True, eq=False)
class Parts:
    """What services work with.

    Attributes:
        settings: What the server was told.
        now: The clock, in UTC.
        models: What is served.
        batchers: Run the models.
        pool: Threads for decoding, digests and answers.
        authenticator: Verifies licenses.
        access_key: Signs access tokens.
        meter: Charges licenses, and knows what they used.
        gate: Refuses too many near copies of one picture.
        padding: Lets answers without a license take as long as those with one.
        prover: Proves receipts.
        receipts: Signs receipts for charges; None where there are none.
        running: Counts the calls that run, and says when there are to be no more.
    """

    settings: ServerSettings
    now: Callable[[], datetime]
    models: Models
    batchers: Batchers
    pool: DecoderPool
    authenticator: Authenticator
    access_key: SigningKey
    meter: Meter
    gate: QueryGate
    padding: ResponsePadding
    prover: Prover
    receipts: ReceiptIssuer | None
    running: Running

    @cached_property
    def decoder(self) -> Decoder:
        """Decodes images; one thread of the pool stays for small ones."""
        at_once = max(1, self.pool.threads - 1)
        return Decoder(self.pool, DecodingMemory(self.settings.decoding_memory_bytes, at_once=at_once))

    def limits_for(self, model: ServedModel) -> ImageLimits:
        """Returns what one image for a model may cost."""
        settings = self.settings
        limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
        return limits_for(model.manifest.preprocessing, limits, ratio=settings.max_image_ratio)
