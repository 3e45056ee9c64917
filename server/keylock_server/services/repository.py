"""Loading and unloading of models by operators, in the words of the Open Inference Protocol's repository extension.

It is offered on the port for operators alone. What there is to load are the bundles the server was started with: an
operator puts a new bundle in the place of an old one and loads its name again.
"""

from collections.abc import Callable, Iterable
from typing import Any

import grpc

from keylock.errors import InputError, UnknownNameError
from keylock.inference import inference_pb2 as pb
from keylock_server.inference.models import Models
from keylock_server.services.inventory import Inventory
from keylock_server.services.operators import log_change, operator_of
from keylock_server.transport.fields import at_field

__all__ = ["RepositoryService"]

_Context = grpc.aio.ServicerContext[Any, Any]


class RepositoryService(Inventory):
    """Loads and unloads models for operators. It predicts nothing."""

    def __init__(self, models: Models, *, ready: Callable[[], bool], patience_s: float) -> None:
        """Makes the service.

        Args:
            models: Those of the server.
            ready: Tells whether the server takes calls.
            patience_s: How long an operator waits for calls that use a model which is to go, in seconds.
        """
        super().__init__(models)
        self._ready = ready
        self._patience_s = patience_s

    def is_ready(self) -> bool:
        """Tells whether calls are taken, on the public port."""
        return self._ready()

    async def ModelInfer(self, request: pb.ModelInferRequest, context: _Context) -> pb.ModelInferResponse:  # noqa: N802
        """Refuses: this is for everybody, and so for the other port."""
        raise InputError("this port is for operators: ask for predictions on the port that is open to everybody")

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, context: _Context
    ) -> pb.RepositoryModelLoadResponse:
        """Loads a model again, from the bundle that is in its place now."""
        name = self._name(request)
        _refuse_parameters(request.parameters)
        log_change(operator_of(context), "loads the model", name)
        await self._models.load(name)
        return pb.RepositoryModelLoadResponse(model_name=name, is_loaded=True)

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, context: _Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Unloads all versions of a model: new calls are refused at once, those that run finish."""
        name = self._name(request)
        # Models depend on no others here, so that this parameter of the protocol changes nothing.
        _refuse_parameters(set(request.parameters) - {"unload_dependents"})
        log_change(operator_of(context), "unloads the model", name)
        await self._models.unload(name, patience_s=self._patience_s)
        return pb.RepositoryModelUnloadResponse(model_name=name, is_unloaded=True)

    def _tell(self, reason: str) -> str:
        return reason

    def _name(self, request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> str:
        """Returns the name of a model that there is; clients of KServe send it where others name a repository."""
        if request.model_name and request.repository_name:
            with at_field("repository_name"):
                raise UnknownNameError("repository", request.repository_name, ())
        name = request.model_name or request.repository_name
        with at_field("model_name" if request.model_name or not name else "repository_name"):
            if not name:
                raise InputError("the request names no model: set model_name")
            if name not in self._models.names:
                raise UnknownNameError("model", name, self._models.names)
        return name


def _refuse_parameters(names: Iterable[str]) -> None:
    for name in names:
        with at_field("parameters"):
            raise InputError(
                f"the parameter {name[:64]!r} is not offered: models are loaded as their bundles are, from where the "
                "server was told to find them"
            )
