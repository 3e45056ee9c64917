"""What blocks cost: each is charged once, under an id of its own, and gets a receipt.

The process that was started charges, and no worker does: licenses, the store and the receipt key stay here. A block
that is explained a second time, because a worker or a whole run died, has the same id, and whatever was charged under
it before is not charged again (`keylock.store.ledger`). What was charged for a job by earlier runs is looked up there.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from keylock.bulk.job import Job
from keylock.bulk.worker import BlockResult
from keylock.bundle import ExplainerEntry, Manifest
from keylock.crypto.issuers import IssuerKeys
from keylock.crypto.signing import VerifyingKey
from keylock.errors import KeylockError, RateError
from keylock.licensing import License, check, check_size
from keylock.licensing.charges import Charge, content_digest
from keylock.licensing.conditions import Condition
from keylock.licensing.receipts import ReceiptSigner
from keylock.licensing.revocations import RevocationFile
from keylock.store import Ledger, LicenseStore
from keylock.store.ledger import Standing
from keylock.store.logged_charges import record_charge
from keylock_server.auth.authentication import Authenticator, Caller
from keylock_server.auth.offline_license import admit_offline_license
from keylock_server.metering.meter import order_for, usage_note
from keylock_server.services.transparency import load_receipt_key, sign_checkpoint
from keylock_server.settings import ServerSettings

__all__ = ["Cashier"]

_LIFETIME_S: Final = 120.0
_LONGEST_WAIT_S: Final = 60.0


class Cashier:
    """Charges blocks to one license. It is used in one thread, and closed."""

    def __init__(
        self,
        settings: ServerSettings,
        token: str,
        *,
        manifest: Manifest,
        entry: ExplainerEntry,
        signer: VerifyingKey,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Verifies the license and opens the store.

        Args:
            settings: Those of a server: issuers, store, prices, receipt key.
            token: The license.
            manifest: Of the model.
            entry: The explainer.
            signer: Who signed the bundle: whose licenses are accepted where no issuer was named.
            now: The clock, in UTC.
            sleep: Waits for a number of seconds.

        Raises:
            LicenseError: If the license is not good, or does not cover model and explainer.
            StoreError: If the store cannot be used.
            ServiceError: If the receipt key is not that of a trusted issuer.
            SignatureError: If a key cannot be read.
        """
        self._now, self._sleep = now, sleep
        self._manifest, self._entry, self._token = manifest, entry, token
        issuers = IssuerKeys(settings.issuers) if settings.issuers else (lambda: (signer,))
        prices = settings.prices
        self._units_per_image = prices.get(entry.name, prices.get("*", 1))
        self._receipt_key = None
        if settings.receipt_key is not None:
            revocations = settings.receipt_revocations
            self._receipt_key = load_receipt_key(
                settings.receipt_key,
                issuers=tuple(issuers()),
                now=now(),
                revocations=None if revocations is None else RevocationFile(revocations),
            )
        self._receipts = None if self._receipt_key is None else ReceiptSigner(self._receipt_key)
        assert settings.license_store is not None  # noqa: S101 - whoever asks for a license names a store
        self._store = LicenseStore(settings.license_store)
        try:
            if settings.offline_license is not None:
                admit_offline_license(
                    settings.offline_license,
                    self._store,
                    manifest=manifest,
                    issuers=tuple(issuers()),
                    now=now(),
                    leeway_s=settings.leeway_s,
                )
            self._authenticator = Authenticator(keys=issuers, store=self._store, leeway_s=settings.leeway_s, now=now)
            self.license = self._granted()
        except BaseException:
            self._store.close()
            raise
        self._ledger = Ledger(self._store.database, record=record_charge)
        self._before: dict[str, Standing] = {}
        self.units = self.earlier = 0

    @property
    def signs_receipts(self) -> bool:
        """Whether blocks get receipts."""
        return self._receipts is not None

    @property
    def units_per_image(self) -> int:
        """What one image costs."""
        return self._units_per_image

    def look_up(self, job: Job) -> None:
        """Finds out what was charged for a job by earlier runs: `earlier` units.

        Raises:
            StoreError: If the store cannot be used.
        """
        self._before = self._ledger.standings(self.license.id, prefix=job.request_ids)
        self.earlier = sum(one.units for one in self._before.values() if one.charged)

    def is_charged(self, job: Job, number: int) -> bool:
        """Tells whether a block was charged by an earlier run, so that it costs nothing any more."""
        found = self._before.get(job.request_id(number))
        return found is not None and found.charged

    def explained_before(self, job: Job, number: int) -> tuple[bool, ...] | None:
        """Returns which images of a block were explained when an earlier run charged it.

        Returns:
            One for each image that could be decoded; None where it was not charged, or the job has no condition.
        """
        found = self._before.get(job.request_id(number))
        return None if found is None else found.explained

    def cost(self, job: Job, number: int, images: int) -> int:
        """Returns what a block costs of which so many images are explained."""
        found = self._before.get(job.request_id(number))
        if found is None:
            return images * self._units_per_image
        # What an earlier run set aside, and was killed before it charged it, is charged at the price of then.
        return 0 if found.charged else images * (found.units // found.images)

    def left(self) -> int | None:
        """Returns how many images the license can still pay for today; None where nothing limits it.

        Raises:
            StoreError: If the store cannot be used.
        """
        windows = self._ledger.windows(self.license, now=self._now())
        units = [window.remaining for window in windows if window.remaining is not None]
        if not units or self.license.quota.overage or not self._units_per_image:
            return None
        return min(units) // self._units_per_image

    def charge(self, job: Job, result: BlockResult) -> str | None:
        """Charges a block, and waits as long as the license is used too fast.

        Args:
            job: What it belongs to.
            result: What was found out of it; at least one of its images could be decoded.

        Returns:
            Its receipt; None where no receipts are signed.

        Raises:
            LicenseError: If the license is not good any more.
            QuotaError: If the block does not fit what it has left; then nothing is charged.
            RequestReusedError: If other images were charged for this block.
            StoreError: If the store cannot be used.
        """
        granted = self._granted()
        check_size(granted, images=result.images)
        asked = self._asked(job, result, granted)
        order = order_for(granted, asked)
        waited = 0.0
        while True:
            try:
                reservation = self._ledger.reserve(order, now=self._now(), lifetime_s=_LIFETIME_S).result()
                break
            except RateError as error:
                pause = min(error.retry_after_s, _LONGEST_WAIT_S)
                waited += pause
                self._sleep(pause)
        try:
            charge = replace(asked, answer=result.answer, time=self._now().replace(microsecond=0))
            charged = self._ledger.commit(reservation, charge).result()
        except KeylockError:
            self._ledger.release(order)
            raise
        if not charged.repeated:
            self.units += charged.charge.units
        return None if self._receipts is None else self._receipts.issue(charged.entry, usage_note(charged))

    def close(self) -> None:
        """Signs the state of the log, where there is a key for it, and closes the store."""
        try:
            self._ledger.close()
            if self._receipt_key is not None and self.units:
                sign_checkpoint(self._store.database, self._receipt_key, now=self._now)
        finally:
            self._store.close()

    def _granted(self) -> License:
        caller = Caller((("authorization", f"Bearer {self._token}"),), None)
        granted = self._authenticator.require(caller).license
        manifest = self._manifest
        check(granted, model_name=manifest.name, model_digest=manifest.model_digest, explainer=self._entry.name)
        return granted

    def _asked(self, job: Job, result: BlockResult, granted: License) -> Charge:
        count = len(result.image_digests)
        asked = Charge(
            license_id=granted.id,
            request_id=job.request_id(result.number),
            request_digest="",
            model_digest=self._manifest.model_digest,
            model_name=self._manifest.name,
            explainer=self._entry.name,
            parameters=self._entry.parameters,
            target=job.asked.target,
            units=count * self._units_per_image,
            keyed=True,
            time=self._now(),
            image_digests=result.image_digests,
            explain_if=self._condition(job),
        )
        return replace(asked, request_digest=content_digest(asked, map_dtype=job.asked.map_dtype))

    def _condition(self, job: Job) -> Condition | None:
        text = job.asked.explain_if
        return None if text is None else Condition.parse(text, self._manifest.classes)
