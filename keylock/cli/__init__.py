"""The `keylock` command: a table of commands, each imported when it is used, and one place where errors become text.

`keylock --help` imports no command. To add one, write a function with typer annotations (or an app made by
`_console.new_app`) in a module of this package and add a row to `COMMANDS`. One with many options takes a dataclass of
them, by `_options.takes`. Commands raise `KeylockError` for every user mistake; `main` prints `error: ...` on standard
error and returns the exit code of the error.
"""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from keylock.cli._console import StoppedError, note
from keylock.cli._help import GroupedCommand
from keylock.cli._secrets import forget_environment
from keylock.cli._wording import teach, use_words
from keylock.errors import EXIT_MISSING_EXTRA, KeylockError

__all__ = ["COMMANDS", "CommandRow", "app", "main"]

EXIT_USAGE = 2
EXIT_FILE = 3
EXIT_AUDIT_FAILED = 12
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class CommandRow:
    """One command: what is shown in `keylock --help`, and where it lives.

    Attributes:
        name: What the user types.
        home: `module:attribute`; the attribute is a function with typer annotations or a `typer.Typer`.
        summary: One line for the list of commands.
        section: Heading in the list of commands.
    """

    name: str
    home: str
    summary: str
    section: str

    def load(self) -> Any:  # noqa: ANN401 - typer exports no name for the class of its commands
        """Import the command.

        Returns:
            The typer command or group, ready to be invoked.
        """
        module, _, attribute = self.home.partition(":")
        found = getattr(import_module(module), attribute)
        if isinstance(found, typer.Typer):
            command = get_command(found)
        else:
            single = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
            single.command(name=self.name, cls=GroupedCommand)(found)
            command = get_command(single)
        command.name = self.name
        teach(command)
        return command


COMMANDS = (
    CommandRow(
        "quickstart", "keylock.cli.quickstart:quickstart", "Train, lock, serve and explain, in minutes.", "Start"
    ),
    CommandRow("train", "keylock.cli.train:train", "Lock a classifier and write a signed bundle.", "Vendor"),
    CommandRow(
        "retire", "keylock.cli.retire:retire", "Retire a key of a lock with several, by a further training.", "Vendor"
    ),
    CommandRow("evaluate", "keylock.cli.evaluate:evaluate", "Measure what the lock of a bundle is worth.", "Vendor"),
    CommandRow("audit", "keylock.cli.audit:audit", "Attack a lock, and write a report.", "Vendor"),
    CommandRow("inspect", "keylock.cli.inspect:inspect", "Show what is in a bundle.", "Vendor"),
    CommandRow("verify", "keylock.cli.inspect:verify", "Check the signature and every file of a bundle.", "Vendor"),
    CommandRow("sign", "keylock.cli.sign:sign", "Add a signature of OpenSSF Model Signing to a bundle.", "Vendor"),
    CommandRow("export", "keylock.cli.inspect:export", "Copy a bundle without its key.", "Vendor"),
    CommandRow("card", "keylock.cli.card:card", "Write a model card for the Hugging Face Hub.", "Vendor"),
    CommandRow("push", "keylock.cli.registry:push", "Send a bundle to an OCI registry.", "Vendor"),
    CommandRow("stamp", "keylock.cli.stamp:stamp", "Put the trigger on a picture.", "Vendor"),
    CommandRow("serve", "keylock.cli.serve:serve", "Serve predictions and explanations over gRPC.", "Vendor"),
    CommandRow(
        "explain-many",
        "keylock.cli.explain_many:explain_many",
        "Explain very many images, by workers of Ray.",
        "Vendor",
    ),
    CommandRow("license", "keylock.cli.license:app", "Issue, show, renew, suspend and revoke licenses.", "Vendor"),
    CommandRow("usage", "keylock.cli.usage:app", "Show and export what licenses used, and check the books.", "Vendor"),
    CommandRow("prices", "keylock.cli.prices:app", "Propose what explainers cost in units.", "Vendor"),
    CommandRow("admin", "keylock.cli.admin:app", "Ask a running server how it is, and revoke on it.", "Vendor"),
    CommandRow("store", "keylock.cli.store:app", "Migrate, check and back up licenses and usage.", "Vendor"),
    CommandRow("issuer", "keylock.cli.keys:issuer_app", "Make, show and change the issuer key that signs.", "Vendor"),
    CommandRow("key", "keylock.cli.key:app", "Make key seeds, and seal the key of a bundle.", "Vendor"),
    CommandRow(
        "offline-license", "keylock.cli.offline:offline_license", "Seal a license and the key for a customer.", "Vendor"
    ),
    CommandRow(
        "audit-log", "keylock.cli.audit_log:app", "Verify, prove and sign the log of everything charged.", "Vendor"
    ),
    CommandRow("predict", "keylock.cli.predict:predict", "Ask a server to classify images.", "Customer"),
    CommandRow("explain", "keylock.cli.explain:explain", "Ask a server why: saliency maps of images.", "Customer"),
    CommandRow("pull", "keylock.cli.registry:pull", "Fetch a bundle from an OCI registry, and verify it.", "Customer"),
    CommandRow(
        "disclose",
        "keylock.cli.disclose:disclose",
        "Explain an image to somebody who has a right to it.",
        "Customer",
    ),
    CommandRow("receipt", "keylock.cli.receipt:app", "Show and check receipts: what was charged for what.", "Customer"),
    CommandRow(
        "verify-audit",
        "keylock.cli.verify_audit:verify_audit",
        "Check that the report of an audit is as signed.",
        "Customer",
    ),
)
"""Every command, in the order of `keylock --help`."""

# They come from writing, and do not name the file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_EXTRAS = {
    **dict.fromkeys(("captum", "matplotlib", "onnx", "onnxscript", "safetensors", "torch", "torchvision"), "train"),
    **dict.fromkeys(
        (
            "alembic",
            "grpc_health",
            "grpc_reflection",
            "onnxruntime",
            "prometheus_client",
            "pydantic_settings",
            "sqlalchemy",
        ),
        "server",
    ),
    "psycopg": "postgres",
    "requests": "oci",
    **dict.fromkeys(("pyarrow", "ray"), "ray"),
}


class _LazyCommand(TyperCommand):
    """A row of the list of commands that has not been imported."""

    def __init__(self, row: CommandRow) -> None:
        super().__init__(name=row.name, help=row.summary, rich_markup_mode=None)
        self.row = row


class _LazyGroup(TyperGroup):
    """The top-level group: lists `COMMANDS` without importing them, imports the one that is invoked."""

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401 - typer passes its settings through
        super().__init__(**attributes)
        for row in COMMANDS:
            self.add_command(_LazyCommand(row))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - see CommandRow.load
        """Find the command that was asked for, and import it."""
        name, command, rest = super().resolve_command(ctx, args)
        if isinstance(command, _LazyCommand):
            command = command.row.load()
        return name, command, rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - see CommandRow.load
        """Write the list of commands, section by section."""
        width = max(len(row.name) for row in COMMANDS)
        for section in dict.fromkeys(row.section for row in COMMANDS):
            with formatter.section(section):
                formatter.write_dl([(r.name.ljust(width), r.summary) for r in COMMANDS if r.section == section])


app = typer.Typer(
    cls=_LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Run 'keylock COMMAND --help' for the options of a command.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from keylock import __version__

        typer.echo(f"keylock {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Ship the model. License the explanations."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit(EXIT_USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program name; those of the process when left out. `--debug` is taken anywhere.

    Returns:
        The exit code, one of those in `docs/cli.md`.
    """
    use_words({})
    # Whatever is written, by libraries too, nobody but its owner changes.
    os.umask(os.umask(0o077) | 0o022)
    forget_environment()
    # Read when gRPC is imported: its C core writes lines of its libraries about connections, which errors say in words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Read when torch is imported: threads that wait for others soon sleep, where by default they spin and keep a core
    # busy. GNU's OpenMP, which torch has on Linux, looks some tens of microseconds before, in which most waits end.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    arguments, debug = _hoist_debug(list(sys.argv[1:] if argv is None else argv))
    try:
        outcome = get_command(app).main(arguments, prog_name="keylock", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        return _report(error, debug=debug)
    if outcome == EXIT_INTERRUPTED:
        note("interrupted")
    return outcome if isinstance(outcome, int) else 0


def _hoist_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Take `--debug` out of the arguments before a `--`, wherever it stands, so that it can be added at the end."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return kept + arguments[end:], len(kept) < end


def _report(error: BaseException, *, debug: bool) -> int:
    """Print one line about an error and choose the exit code. Unknown exceptions are named, their text is not shown."""
    if isinstance(error, KeylockError):
        return _fail(error.message, error.exit_code)
    if isinstance(error, typer.TyperException):
        return _report_usage(error)
    if isinstance(error, StoppedError):
        note(str(error))
        return EXIT_INTERRUPTED
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        note("interrupted")
        return EXIT_INTERRUPTED
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _EXTRAS:
        package = (error.name or "").partition(".")[0]
        extra = _EXTRAS[package]
        text = f"this command needs {package}, which is not installed; install the extra: pip install '.[{extra}]'"
        return _fail(text, EXIT_MISSING_EXTRA)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return _fail(f"cannot use {os.fspath(error.filename)!r}: {error.strerror}", EXIT_FILE)
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return _fail(f"cannot write what this command makes: {error.strerror}: make room, and run it again", EXIT_FILE)
    hint = "" if debug else "; run it again with --debug for the traceback"
    return _fail(f"unexpected {type(error).__name__}: this is a fault in keylock{hint}", EXIT_BUG)


def _report_usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        note(error.format_message())
        return error.exit_code
    hint = f" (see '{context.command_path} --help')" if context is not None else ""
    return _fail(f"{error.format_message().rstrip('.')}{hint}", error.exit_code)


def _fail(text: str, code: int) -> int:
    note(f"error: {' '.join(text.split())}")
    return code
