"""What a lock is held to: limits by kind of attacker and by attack, from a TOML file."""

import tomllib
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keylock.errors import InputError
from keylock.text.wanted import part, wanted

__all__ = ["Limit", "Policy"]

_Correlation = Annotated[float, Field(ge=-1, le=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limit(_Entry):
    """What a recovered map may reach; what is None is not limited.

    Attributes:
        max_pcc: Correlation with the true map.
        max_excess: The same, less chance.
        max_advantage: The same, less what a model of the attacker's own reaches at the same price.
    """

    max_pcc: _Correlation | None = None
    max_excess: _Correlation | None = None
    max_advantage: _Correlation | None = None

    def describe(self) -> str:
        """Return the limit in words."""
        parts = (
            ("PCC", self.max_pcc),
            ("PCC - chance", self.max_excess),
            ("PCC - own model", self.max_advantage),
        )
        return ", ".join(f"{name} <= {value:g}" for name, value in parts if value is not None)

    def allows(self, found: float, *, chance: float, own: float) -> bool | None:
        """Tell whether a correlation is allowed; None where nothing is limited."""
        pairs = ((self.max_pcc, 0.0), (self.max_excess, chance), (self.max_advantage, own))
        kept = [found - base <= limit for limit, base in pairs if limit is not None]
        return all(kept) if kept else None


class _Detection(_Entry):
    max_separation: Annotated[float, Field(ge=0.5, le=1)] | None = None


class _Service(_Entry):
    all_good: bool = True


class Policy(_Entry):
    """What a lock is held to.

    Attributes:
        t0: Attackers with public calls alone.
        t1: Attackers with the published bundle.
        t2: Attackers with true maps of other images.
        attacks: By name of the attack, with `*`; the first that fits takes the place of the above.
        detection: Of attacks that ask whether maps are locked.
        service: Of attacks on the running service.
    """

    t0: Limit = Limit()
    t1: Limit = Limit()
    t2: Limit = Limit()
    attacks: dict[str, Limit] = {}
    detection: _Detection = _Detection()
    service: _Service = _Service()

    @classmethod
    def load(cls, path: Path | None = None) -> "Policy":
        """Read a policy.

        Args:
            path: A TOML file; by default the one that comes with keylock.

        Raises:
            InputError: The file cannot be read or says something else.
        """
        try:
            text = files("keylock.audit").joinpath("policy.toml").read_text("utf-8") if path is None else None
            content: dict[str, Any] = tomllib.loads(text if text is not None else Path(path or "").read_text("utf-8"))
            return cls.model_validate(content)
        except OSError as error:
            raise InputError(f"cannot read the policy {path}: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where, schema = ".".join(map(str, first["loc"])), part(cls.model_json_schema(), first["loc"])
            what = f"give {wanted(schema)}" if schema else "there is nothing of this name in a policy"
            raise InputError(f"the policy {path} is wrong at {where}: {what}") from None
        except ValueError as error:
            raise InputError(f"the policy {path} is no TOML: {error}") from None

    def limit_of(self, attack: str, group: str) -> Limit:
        """Return the limit of an attack."""
        for pattern, limit in self.attacks.items():
            if fnmatchcase(attack, pattern):
                return limit
        return {"T0": self.t0, "T1": self.t1, "T2": self.t2}.get(group, Limit())
