"""Bundles in OCI registries, as model artefacts of the CNCF ModelPack specification.

`push_bundle` sends a bundle, `pull_bundle` fetches one, file by file, each as a layer of its own: a registry keeps what
two bundles share once, and whoever pulls may leave the sealed parts where they are. What a registry says is believed by
digest alone, and what is pulled is verified as every bundle is.
"""

from keylock.registries.client import Registry
from keylock.registries.credentials import Credentials, find_credentials
from keylock.registries.reference import Reference
from keylock.registries.transfer import Pulled, Pushed, pull_bundle, push_bundle

__all__ = [
    "Credentials",
    "Pulled",
    "Pushed",
    "Reference",
    "Registry",
    "find_credentials",
    "pull_bundle",
    "push_bundle",
]
