"""`keylock prices`: what explainers could cost, in units."""

from pathlib import Path
from typing import Annotated

import typer

from keylock.cli._console import JsonOption, new_app, note, print_json, print_table

__all__ = ["app"]

app = new_app("Propose what explainers cost in units, from what they cost the machine.")


@app.callback()
def _prices() -> None:
    """Propose what explainers cost in units, from what they cost the machine."""


@app.command("suggest")
def prices_suggest(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle: a folder or a .klb file.")],
    rounds: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="How often to measure.")] = 3,
    batch: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Images in a run.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure the explainers of a bundle on this machine, and propose a price in units for each.

    The cheapest costs one unit, the others as many as they take of its processor time. The last lines printed are the
    setting of the server. No key is needed: maps with the key run the same operations.
    """
    from keylock.errors import BundleError
    from keylock_server.inference.costs import measure_costs
    from keylock_server.inference.model_loader import open_model
    from keylock_server.settings import ServerSettings

    model, _ = open_model(ServerSettings(bundle=bundle, keyless=True))
    costs = measure_costs(model, rounds=rounds, batch=batch)
    if not costs:
        raise BundleError(
            f"no explainer of {bundle} can be served on this machine, so that there is nothing to measure"
        )
    if as_json:
        print_json({"prices": {one.name: one.units for one in costs}, "explainers": costs})
        return
    rows = [
        (one.name, one.passes, f"{one.cpu_ms:.2f}", f"{one.predictions:.1f}", one.units)
        for one in sorted(costs, key=lambda one: one.cpu_ms)
    ]
    print_table(("explainer", "passes", "ms of a core", "predictions", "units"), rows)
    note("note: other programs on the machine, and another runtime or device, change these figures")
    typer.echo("\n[prices]")
    for one in sorted(costs, key=lambda one: (one.units, one.name)):
        typer.echo(f"{one.name} = {one.units}")
