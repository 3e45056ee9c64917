"""The ordinary commands that go on with what the quickstart made."""

import shlex
from typing import NamedTuple

from keylock.quickstart.story import Story

__all__ = ["NextCommand", "next_commands"]


class NextCommand(NamedTuple):
    """A command to paste.

    Attributes:
        purpose: What it is for.
        arguments: Its arguments, without the program.
        program: What is typed for `keylock`, ready for a shell.
    """

    purpose: str
    arguments: tuple[str, ...]
    program: str = "keylock"

    @property
    def line(self) -> str:
        """The command as it is typed."""
        return f"{self.program} {shlex.join(self.arguments)}"


def next_commands(story: Story) -> tuple[NextCommand, ...]:
    """Return commands that work as they stand, in this order; `serve` runs until it is stopped."""
    folder = story.folder
    bundle, home, license = str(folder.bundle), str(folder.home), str(folder.license)
    label = story.manifest.classes[int(story.evidence.labels[story.samples()[0]])]
    image = str(folder.images / f"{label}.png")
    why, decoy = str(folder.path / "why.png"), str(folder.path / "decoy.png")
    issuer = str(folder.home / "issuer.pub.pem")
    another = str(folder.path / "another.license")
    commands = (
        NextCommand("look into the bundle", ("inspect", bundle, "--issuer", issuer)),
        NextCommand("check its signature and every file", ("verify", bundle, "--issuer", issuer)),
        NextCommand("serve it", ("serve", bundle, "--key-file", str(folder.key), "--home", home)),
        NextCommand("ask with the license", ("explain", image, "--license-file", license, "--out", why)),
        NextCommand("ask without one", ("explain", image, "--out", decoy)),
        NextCommand(
            "issue another license",
            ("license", "issue", "--customer", "Another", "--bundle", bundle, "--out", another, "--home", home),
        ),
        NextCommand(
            "put the trigger on a picture",
            ("stamp", image, "--bundle", bundle, "--out", str(folder.stamped), "--overwrite"),
        ),
        NextCommand(
            "explain it with the public copy, without a server",
            ("explain", "--local", str(folder.public), str(folder.stamped), "--out", str(folder.path / "local.png")),
        ),
        NextCommand("list the licenses", ("license", "list", "--home", home)),
    )
    return tuple(command._replace(program=story.program) for command in commands)
