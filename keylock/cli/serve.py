"""`keylock serve`: a server for one bundle or several, until SIGTERM or Ctrl-C."""

from collections.abc import Mapping
from typing import Any

import typer

from keylock.cli._console import print_json
from keylock.cli._options import takes
from keylock.cli._serve_options import ServeOptions
from keylock.cli._vendor_settings import complete_settings, take_secrets

__all__ = ["serve"]


@takes(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve predictions to everybody and true saliency maps to callers with a license, over gRPC.

    Stops on SIGTERM or Ctrl-C, after the running calls have finished. More settings: docs/server.md.
    """
    from keylock_server import serve as run

    settings = options.settings()
    _set_up_log(options.log_level, options.log_format)
    settings = complete_settings(settings, options.home)
    take_secrets()
    run(settings, on_ready=lambda described: _announce(described, as_json=options.as_json), prepare=_set_up_tracing)


def _set_up_tracing() -> None:
    # In each process that serves: exporting spans begins a thread.
    from keylock_server.operations.tracing import set_up_tracing

    set_up_tracing()


def _set_up_log(level: str, form: str) -> None:
    import logging
    import warnings

    from keylock.errors import InputError
    from keylock_server.transport.logs import JsonFormatter, TextFormatter

    levels = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
    if level not in levels:
        raise InputError(f"the log level {level!r} is unknown: choose one of {', '.join(levels)}")
    if form not in ("text", "json"):
        raise InputError(f"the log format {form!r} is unknown: choose text or json")
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.getLogger("keylock_server").setLevel(levels[level])
    # Image readers warn about oddities of images that callers send; these are no concern of the server's log.
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _announce(described: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(described)
        return
    workers = f" by {len(described['workers'])} workers" if "workers" in described else ""
    for model in described["models"]:
        with_key = "without the key" if model["key_id"] is None else f"with the key {model['key_id']}"
        typer.echo(f"serving {model['model']} on {described['target']} {with_key}{workers}; Ctrl-C stops", color=False)
