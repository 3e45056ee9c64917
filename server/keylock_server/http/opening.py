"""HTTP beside gRPC, opened where the settings name a port for it."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import grpc

from keylock.errors import ServiceError
from keylock_server.services.health import HealthService
from keylock_server.services.parts import Parts
from keylock_server.settings import ServerSettings
from keylock_server.transport.tls import load_context

if TYPE_CHECKING:
    from keylock_server.http.serving import HttpServer

__all__ = ["check_http", "open_http"]

# The application answers before, and says what was too slow.
_MARGIN_S: Final = 15.0
_PACKAGES: Final = ("starlette", "uvicorn", "httptools")


def check_http(settings: ServerSettings) -> None:
    """Checks that HTTP can be spoken, if it is to be.

    Raises:
        ServiceError: If packages are missing that it needs.
    """
    if settings.http_port is None:
        return
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ServiceError(
            f"{settings.called('http_port')} needs {' and '.join(missing)}: install keylock with the extra http"
        )


async def open_http(
    settings: ServerSettings,
    parts: Parts,
    health: HealthService,
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    *,
    reuse_port: bool,
) -> "HttpServer | None":
    """Makes the server for HTTP, which has its address and is not started.

    Args:
        settings: Where it listens, and the files of TLS.
        parts: What the services work with.
        health: Says how they are.
        interceptors: What every call goes through, outermost first.
        reuse_port: Whether other processes listen on the same address.

    Returns:
        The server; None where the settings name no port for it.

    Raises:
        ServiceError: If a file of TLS cannot be used, or the address cannot be listened on.
    """
    if settings.http_port is None:
        return None
    from keylock_server.http.application import make_application
    from keylock_server.http.rpcs import Rpcs
    from keylock_server.http.serving import HttpServer

    tls = None
    if settings.tls_certificate is not None and settings.tls_key is not None:
        tls = load_context(
            settings.tls_certificate, settings.tls_key, settings.tls_client_ca, reload_s=settings.tls_reload_s
        )
    rpcs = await Rpcs.make(parts, interceptors)
    return HttpServer(
        make_application(rpcs, parts, is_well=lambda: health.is_well("")),
        host=settings.host,
        port=settings.http_port,
        reuse_port=reuse_port,
        tls=tls,
        patience_s=settings.deadline_s + _MARGIN_S,
    )
