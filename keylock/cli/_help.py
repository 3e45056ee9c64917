"""Help of commands with many options: in groups, each under its heading, and no hidden argument in the usage line."""

from typing import Any

from typer.core import TyperCommand

__all__ = ["GroupedCommand"]


class GroupedCommand(TyperCommand):
    """A command whose options stand under the headings that `rich_help_panel` names, in the order of the options.

    Options without a heading come last, under "Options".
    """

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401 - typer exports no name for its contexts
        """Return what follows the command's name in the usage line; an argument that help hides is not in it."""
        shown = [option for option in self.get_params(ctx) if not getattr(option, "hidden", False)]
        pieces = [piece for option in shown for piece in option.get_usage_pieces(ctx)]
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
                groups["Arguments"].append(record)
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
