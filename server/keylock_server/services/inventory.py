"""What the Open Inference Protocol tells about a server and its models, to everybody and on every port.

`PredictionService` adds predictions to it, `RepositoryService`, which is offered to operators alone, loading and
unloading.
"""

from typing import Any, Final

import grpc

from keylock import __version__
from keylock.errors import UnknownNameError
from keylock.inference import inference_pb2 as pb
from keylock.inference import inference_pb2_grpc as pb_grpc
from keylock_server.inference.models import Models, State
from keylock_server.services.tensors import describe_inputs, describe_outputs
from keylock_server.transport.fields import at_field
from keylock_server.transport.statuses import OperatorsOnlyError

__all__ = ["Inventory"]

_Context = grpc.aio.ServicerContext[Any, Any]

_PLATFORM: Final = "onnxruntime_onnx"
_EXTENSIONS: Final = ("model_repository",)


class Inventory(pb_grpc.GRPCInferenceServiceServicer):
    """Says what there is; what changes something is refused."""

    def __init__(self, models: Models) -> None:
        """Takes the models of the server."""
        self._models = models

    def is_ready(self) -> bool:
        """Tells whether calls are taken."""
        raise NotImplementedError

    async def ServerLive(self, request: pb.ServerLiveRequest, context: _Context) -> pb.ServerLiveResponse:  # noqa: N802
        """Says that the process runs."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: _Context) -> pb.ServerReadyResponse:  # noqa: N802
        """Says whether calls are taken; not any more while the server drains."""
        return pb.ServerReadyResponse(ready=self.is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: _Context) -> pb.ModelReadyResponse:  # noqa: N802
        """Says whether a model is loaded; one that does not exist is not."""
        versions = self._versions(request.name)
        known = request.version in versions if request.version else bool(versions)
        return pb.ModelReadyResponse(ready=self.is_ready() and known)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: _Context) -> pb.ServerMetadataResponse:  # noqa: N802
        """Names the server."""
        return pb.ServerMetadataResponse(name="keylock", version=__version__, extensions=_EXTENSIONS)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: _Context) -> pb.ModelMetadataResponse:  # noqa: N802
        """Lists inputs and outputs of a model, and the versions of it that are loaded."""
        with self._models.use(request.name, request.version, name_field="name", version_field="version") as model:
            manifest = model.manifest
        return pb.ModelMetadataResponse(
            name=manifest.name,
            versions=self._versions(manifest.name),
            platform=_PLATFORM,
            inputs=describe_inputs(manifest.preprocessing),
            outputs=describe_outputs(len(manifest.classes)),
        )

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, context: _Context
    ) -> pb.RepositoryIndexResponse:
        """Lists the models that were named when the server was started, loaded or not."""
        with at_field("repository_name"):
            if request.repository_name:
                raise UnknownNameError("repository", request.repository_name, ())
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=one.name, version=one.version, state=one.state.value, reason=self._tell(one.reason)
                )
                for one in self._models.listed()
                if one.state is State.READY or not request.ready
            ]
        )

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, context: _Context
    ) -> pb.RepositoryModelLoadResponse:
        """Refuses: this is for operators."""
        raise OperatorsOnlyError

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, context: _Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Refuses: this is for operators."""
        raise OperatorsOnlyError

    def _tell(self, reason: str) -> str:
        """Returns why a model is not ready, as far as the caller may know: it can name files of the server."""
        return "not loaded at the moment" if reason else ""

    def _versions(self, name: str) -> list[str]:
        return [model.version for model in self._models.served if model.manifest.name == name]
