"""What a running server looks at, and which of its services are not well while it finds something wrong."""

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from keylock_server.inference.models import Models
from keylock_server.metering.meter import Meter
from keylock_server.metering.store_clock import compare_clocks
from keylock_server.services.health import Check, HealthChecks, HealthService, check_canaries, first_look
from keylock_server.services.registry import SERVICES
from keylock_server.settings import ServerSettings
from keylock_server.transport.descriptors import check_descriptors

if TYPE_CHECKING:
    from keylock.store import LicenseStore

__all__ = ["Health", "make_health"]

_DESCRIPTOR_CHECK_S: Final = 1.0


class Health(NamedTuple):
    """The health of a server.

    Attributes:
        service: Answers whoever asks.
        checks: Find out how it is.
    """

    service: HealthService
    checks: HealthChecks


def make_health(
    settings: ServerSettings,
    models: Models,
    store: "LicenseStore | None",
    meter: Meter,
    now: Callable[[], datetime],
) -> Health:
    """Makes the health of a server, whose checks are not started yet.

    Args:
        settings: How often to look.
        models: What is served.
        store: Licenses; None where there are none.
        meter: Charges them.
        now: The clock, in UTC.
    """
    everything = frozenset({"", *(service.name for service in SERVICES)})
    checks = {} if store is None else _store_checks(settings, store, meter, now)
    checks["descriptors"] = Check(check_descriptors, every_s=_DESCRIPTOR_CHECK_S, services=everything)
    checks["canary"] = Check(
        lambda: check_canaries(models.served),
        every_s=settings.canary_check_s,
        services=everything,
        first=lambda: first_look(models.served),
    )
    service = HealthService()
    return Health(service, HealthChecks(checks, service=service, services=sorted(everything)))


def _store_checks(
    settings: ServerSettings, store: "LicenseStore", meter: Meter, now: Callable[[], datetime]
) -> dict[str, Check]:
    from keylock.store.identity import Presence

    # Without its store a server predicts still, and a balancer that asks for the whole must not take it out.
    licensed = frozenset(service.name for service in SERVICES if service.needs_store)
    presence = Presence(store.database, now=now)
    every_s = settings.store_check_s
    return {
        "store": Check(presence.confirm, every_s=every_s, services=licensed, end=presence.leave),
        "metering": Check(meter.problem, every_s=every_s, services=licensed),
        # Named and no more: to whom a wrong clock does harm is for the operator to say.
        "clock": Check(
            lambda: compare_clocks(store, now=now, leeway_s=settings.leeway_s), every_s=every_s, services=frozenset()
        ),
    }
