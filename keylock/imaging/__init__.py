"""Images: from untrusted files to the pixels and tensors that a model sees, and from maps to pictures.

`Preprocessing` is loaded when it is first used: pydantic checks it, and takes longer to load than all the rest.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keylock.imaging.preprocessing import Preprocessing

__all__ = ["Preprocessing"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute can be anything
    if name != "Preprocessing":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from keylock.imaging.preprocessing import Preprocessing

    return Preprocessing
