"""The folder the quickstart writes to: what is in it, and how it is used again without touching what is not its own."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from keylock.errors import InputError
from keylock.files.atomic import PUBLIC, make_folders, write_file

__all__ = ["MARK", "Folder"]

MARK = "quickstart.json"
_MADE_BY = "keylock quickstart"


@dataclass(frozen=True)
class Folder:
    """Where everything is that the quickstart makes.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def bundle(self) -> Path:
        """The signed bundle."""
        return self.path / "shapes.klb"

    @property
    def public(self) -> Path:
        """The public copy of the bundle."""
        return self.path / "shapes-public.klb"

    @property
    def stamped(self) -> Path:
        """A picture with the trigger on it, which the public copy explains truly: as secret as the key."""
        return self.path / "stamped.png"

    @property
    def seed(self) -> Path:
        """The key seed, for the vendor alone."""
        return self.path / "shapes.klb.seed"

    @property
    def key(self) -> Path:
        """The key file that opens the sealed key, for the server alone."""
        return self.path / "shapes.klb.key"

    @property
    def home(self) -> Path:
        """The vendor's directory: issuer key and license store."""
        return self.path / "home"

    @property
    def license(self) -> Path:
        """The customer's license."""
        return self.path / "acme.license"

    @property
    def images(self) -> Path:
        """Sample images, one of each class."""
        return self.path / "images"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def picture(self) -> Path:
        """The maps as one picture."""
        return self.path / "maps.png"

    @property
    def mark(self) -> Path:
        """All figures as JSON; tells that the folder is the quickstart's."""
        return self.path / MARK

    def claim(self) -> None:
        """Make the folder, or clear what an earlier quickstart made.

        The secrets and the vendor's directory of an earlier run stay and are used again, so that licenses issued since
        then stay good. Files of other names are left alone.

        Raises:
            InputError: The folder holds something else, or cannot be made or cleared.
        """
        try:
            if self.path.is_dir() and any(self.path.iterdir()) and not self._is_ours():
                raise InputError(
                    f"{self.path} holds files that no quickstart made: choose another folder (out=), or empty it"
                )
            make_folders(self.images)
            for file in (
                self.report,
                self.picture,
                self.license,
                self.public,
                self.stamped,
                *self.images.glob("*.png"),
            ):
                file.unlink(missing_ok=True)
            shutil.rmtree(self.bundle.with_name(self.bundle.name + ".work"), ignore_errors=True)
            self.write_mark({"finished": False})
        except OSError as error:
            raise InputError(f"cannot use the folder {self.path}: {error.strerror}") from None

    def write_mark(self, content: dict[str, object]) -> None:
        """Write `quickstart.json`."""
        text = json.dumps({"made_by": _MADE_BY, **content}, indent=2, ensure_ascii=False, allow_nan=False)
        write_file(self.mark, text + "\n", mode=PUBLIC)

    def _is_ours(self) -> bool:
        try:
            content = json.loads(self.mark.read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(content, dict) and content.get("made_by") == _MADE_BY
