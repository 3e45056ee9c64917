"""Help of commands: many options in groups, each under its heading, and lists of commands with whole sentences."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["CommandGroup", "GroupedCommand"]

_LONGEST = 1000


class CommandGroup(TyperGroup):
    """A group of commands whose help gives the first sentence of each whole, on several lines where it is long."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - typer exports no name for these
        """Write the list of commands."""
        found = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [(name, one.get_short_help_str(_LONGEST)) for name, one in found.items() if one and not one.hidden]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


class GroupedCommand(TyperCommand):
    """A command whose options stand under the headings that `rich_help_panel` names, in the order of the options.

    Options without a heading come last, under "Options".
    """

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401 - typer exports no name for its contexts
        """Return what follows the command's name in the usage line; an argument that help hides is not in it."""
        shown = [param for param in self.get_params(ctx) if not getattr(param, "hidden", False)]
        pieces = [_usage(param) for param in shown if param.param_type_name == "argument"]
        return [self.options_metavar, *pieces] if self.options_metavar else pieces

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - as above
        """Write the arguments, then the options group by group."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        unnamed: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if param.param_type_name == "argument":
                groups["Arguments"].append((_usage(param), record[1].removesuffix("[required]").rstrip()))
            elif heading := getattr(param, "rich_help_panel", None):
                groups.setdefault(heading, []).append(record)
            else:
                unnamed.append(record)
        # Within all groups, so that their second columns stand under each other.
        width = max((len(name) for records in (*groups.values(), unnamed) for name, _ in records), default=0)
        for heading, records in (*groups.items(), ("Options", unnamed)):
            if records:
                with formatter.section(heading):
                    formatter.write_dl([(name.ljust(min(width, 30)), text) for name, text in records])


def _usage(argument: Any) -> str:  # noqa: ANN401 - typer exports no name for its arguments
    """Return an argument as it stands in a usage line, in the manner of manual pages."""
    name = (argument.metavar or argument.name).strip("[]")
    several = f"{name}..." if argument.nargs != 1 else name
    return several if argument.required else f"[{several}]"
