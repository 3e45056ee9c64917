"""Commands that take their options as one object: the command line has the fields of the dataclass."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from keylock.cli._options import takes


@dataclass(frozen=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option(help="Width in pixels.")]
    height: Annotated[int, typer.Option(help="Height in pixels.")] = 2


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    file: Annotated[str, typer.Argument(help="Where it goes.")]
    size: Size
    colour: Annotated[str | None, typer.Option(help="What it is drawn with.")] = None


@pytest.fixture
def draw():
    seen = []

    @takes(DrawOptions)
    def command(options: DrawOptions) -> None:
        """Draw something."""
        seen.append(options)

    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)

    def run(*arguments):
        return CliRunner().invoke(app, arguments), seen

    return run


def test_fields_are_options_and_a_field_that_is_a_dataclass_stands_for_its_own(draw):
    outcome, seen = draw("a.png", "--width", "5")
    assert outcome.exit_code == 0, outcome.output
    assert seen == [DrawOptions(file="a.png", size=Size(width=5, height=2), colour=None)]


def test_options_without_a_default_are_required(draw):
    for arguments, missing in ((["a.png"], "--width"), (["--width", "5"], "argument 'file'")):
        outcome, seen = draw(*arguments)
        assert outcome.exit_code == 2
        assert missing in outcome.output
        assert seen == []


def test_help_has_the_options_in_the_order_of_the_fields(draw):
    text = draw("--help")[0].output
    places = [text.index(option) for option in ("Draw something.", "--width", "--height", "--colour")]
    assert places == sorted(places)
