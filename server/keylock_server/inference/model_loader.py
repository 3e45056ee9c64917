"""From settings to models that can be served: verify each bundle, unseal key and delta, load the graphs."""

import logging
from collections.abc import Callable, Collection, MutableMapping
from typing import Final

import onnxruntime

from keylock import __version__ as keylock_version
from keylock.bundle import Bundle, open_bundle
from keylock.crypto.issuers import IssuerKeys
from keylock.crypto.signing import VerifyingKey
from keylock.errors import BundleError, ServiceError
from keylock.trigger.keys import KeySeed
from keylock_server.inference.choices import Choices
from keylock_server.inference.cores import cores_of_process, describe_processor, threads_per_batch
from keylock_server.inference.devices import CPU, warn_about_two_runtimes
from keylock_server.inference.memory import give_back
from keylock_server.inference.openvino_graphs import OpenVINO, is_installed
from keylock_server.inference.runtime import ServedModel
from keylock_server.inference.sessions import Sessions
from keylock_server.inference.shared_secrets import find_seed
from keylock_server.inference.ways import Ways
from keylock_server.settings import ServerSettings, Source

__all__ = ["Opener", "open_model"]

_LOG: Final = logging.getLogger("keylock_server")


class Opener:
    """Opens the bundles that a server is to serve, at its start and while it runs."""

    def __init__(self, settings: ServerSettings, *, seeds: MutableMapping[Source, KeySeed] | None = None) -> None:
        """Takes the settings.

        Args:
            settings: Those of the server.
            seeds: Key seeds that were found already, each of which is used once, taken out and closed.

        Raises:
            SignatureError: If the public key of an issuer cannot be read.
        """
        warn_about_two_runtimes()
        self._settings = settings
        self._seeds = {} if seeds is None else seeds
        self._issuers = IssuerKeys(settings.issuers) if settings.issuers else None
        self._signers: tuple[VerifyingKey, ...] = ()

    def keys(self) -> Collection[VerifyingKey]:
        """Returns the keys whose licenses are accepted; another object when they have changed.

        They are those of the issuers that were named, whose files are read again when they change, or else that of
        whoever signed the bundles.
        """
        return self._signers if self._issuers is None else self._issuers()

    def open(self, source: Source) -> ServedModel:
        """Opens a bundle.

        Args:
            source: The bundle, and the way to its key.

        Raises:
            BundleError: If the bundle cannot be used, or nobody was named and it was signed by another than those
                before: the licenses of one would be good for the models of the other.
            UnsealError: If the key does not open, or no way to it was given and `keyless` was not set.
            KeySeedError: If the key seed cannot be read.
            ServiceError: If the device is not there.
        """
        settings = self._settings
        with open_bundle(source.bundle, trusted=None if self._issuers is None else tuple(self._issuers())) as bundle:
            if not bundle.trusted:
                self._admit(bundle)
            seed = self._find_seed(bundle, source)
            key, delta, canary = None, None, None
            if seed is not None:
                key, delta, canary = bundle.key(seed), bundle.delta(seed), bundle.canary(seed)
                seed.close()
            model = ServedModel(
                bundle.manifest,
                bundle.read,
                key=key,
                delta=delta,
                statistics=None if key is None else bundle.statistics(),
                canary=canary,
                ways=self._ways(bundle.manifest.model_digest),
                max_passes=settings.max_passes,
                allow_torch=settings.allow_torch,
                side_by_side=cores_of_process(settings),
            )
        give_back()
        return model

    def _ways(self, model: str) -> Ways:
        """Returns the ways to compute graphs that the settings want and the machine has.

        Args:
            model: The digest of the model they are for.
        """
        settings = self._settings
        sessions = Sessions(
            settings.device,
            threads=threads_per_batch(settings),
            max_batch=settings.max_batch,
            engine_cache=settings.engine_cache,
        )
        openvino = _openvino(settings, on_cpu=sessions.provider == CPU)
        return Ways(
            sessions,
            runtime=settings.runtime,
            variant=settings.variant,
            least_pcc=settings.least_pcc,
            openvino=openvino,
            choices=None if settings.ways_file is None else Choices(settings.ways_file, self._about(model, openvino)),
        )

    def _about(self, model: str, openvino: OpenVINO | None) -> dict[str, str]:
        """Returns what decides which way is the fastest and right, beside the graphs."""
        settings = self._settings
        return {
            "model": model,
            "processor": describe_processor(),
            "keylock": keylock_version,
            "onnxruntime": onnxruntime.__version__,
            "openvino": "" if openvino is None else openvino.version,
            "threads": f"{threads_per_batch(settings)} for each of {settings.batches}",
            "least_pcc": f"{settings.least_pcc:g}",
        }

    def _find_seed(self, bundle: Bundle, source: Source) -> KeySeed | None:
        found = self._seeds.pop(source, None)
        # What is in the place of the bundle by now may have been locked with another.
        if found is not None and found.id == bundle.manifest.key.id:
            return found
        return find_seed(bundle, source, self._settings)

    def _admit(self, bundle: Bundle) -> None:
        if self._signers and bundle.issuer not in self._signers:
            raise BundleError(
                f"{bundle.path} was signed by {bundle.issuer.key_id} and another bundle by "
                f"{self._signers[0].key_id}: name the public keys you trust with issuer="
            )
        if not self._signers:
            self._signers = (bundle.issuer,)
            _LOG.warning(
                "the bundle was signed by %s, which nobody vouches for: name the key you trust in the setting issuer",
                bundle.issuer.key_id,
            )


def open_model(settings: ServerSettings) -> tuple[ServedModel, Callable[[], Collection[VerifyingKey]]]:
    """Opens the first bundle.

    Args:
        settings: Those of the server.

    Returns:
        The model, and what returns the keys whose licenses are accepted.

    Raises:
        KeylockError: As `Opener`.
    """
    opener = Opener(settings)
    return opener.open(settings.sources[0]), opener.keys


def _openvino(settings: ServerSettings, *, on_cpu: bool) -> OpenVINO | None:
    """Returns OpenVINO, where it is wanted and there.

    Raises:
        ServiceError: If it is insisted on, or numbers are that it alone computes in, and it cannot be used.
    """
    insisted = settings.runtime == "openvino" or settings.variant == "bfloat16"
    if settings.runtime == "onnxruntime":
        if insisted:
            raise ServiceError("bfloat16 is computed by OpenVINO alone: use runtime=openvino, or another variant")
        return None
    if not on_cpu:
        if insisted:
            raise ServiceError("OpenVINO serves on processors here, and this server computes on a GPU: use device=cpu")
        return None
    if not insisted and (settings.variant == "float32" or not is_installed()):
        return None
    try:
        found = OpenVINO(threads=threads_per_batch(settings), runs=settings.batches)
    except ServiceError as error:
        if insisted:
            raise
        _LOG.warning("%s Serving with ONNX Runtime.", error)
        return None
    if settings.variant == "bfloat16" and not found.has_bfloat16:
        raise ServiceError("this processor has no arithmetic in bfloat16: use variant=float32, int8 or auto")
    return found
