"""`serve`: the server as a program, in one process or in several."""

from collections.abc import Callable
from typing import Any

from keylock_server.inference.cores import worker_count
from keylock_server.operations.given_files import check_files
from keylock_server.settings import ServerSettings

__all__ = ["serve"]


def serve(
    settings: ServerSettings,
    *,
    on_ready: Callable[[dict[str, Any]], None] = lambda _described: None,
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Serves until SIGTERM, SIGINT or SIGHUP, drains, and returns. A second signal ends the draining.

    Args:
        settings: What the server does.
        on_ready: Called once the server answers, with what `RunningServer.describe` gives, and for several processes
            with that of each under `workers`.
        prepare: Called in each process that serves, before anything else.

    Raises:
        KeylockError: As `start`; `ServiceError` where there cannot be several processes; `InputError` where files that
            the settings name are missing.
    """
    check_files(settings)
    count = worker_count(settings)
    if count > 1:
        from keylock_server.operations.supervisor import supervise

        supervise(settings.model_copy(update={"workers": count}), on_ready=on_ready, prepare=prepare)
        return
    from keylock_server.operations.one_process import serve_alone

    prepare()
    serve_alone(settings.model_copy(update={"workers": count}), on_ready=on_ready)
