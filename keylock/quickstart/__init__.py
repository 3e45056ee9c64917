"""The whole story in one run: draw images, train, lock, sign, serve, license, explain, and write down what came out.

`tell` runs it and returns a `Story`, in which every figure was measured in this run; `write_report` and `write_picture`
show it. It needs the extra `all`.
"""

from keylock.quickstart.commands import NextCommand, next_commands
from keylock.quickstart.folder import Folder
from keylock.quickstart.picture import write_picture
from keylock.quickstart.recipe import QUICK, RECIPE, Recipe
from keylock.quickstart.report import write_report
from keylock.quickstart.story import Chapter, Story, Teller
from keylock.quickstart.telling import tell

__all__ = [
    "QUICK",
    "RECIPE",
    "Chapter",
    "Folder",
    "NextCommand",
    "Recipe",
    "Story",
    "Teller",
    "next_commands",
    "tell",
    "write_picture",
    "write_report",
]
