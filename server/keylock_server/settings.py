"""The settings of a server: from a TOML file, the environment (`KEYLOCK_SERVER_*`) and flags, the later ones winning.

Secrets are not settings that print: the passphrase is a `SecretStr`, everything else secret is the path of a file.
`docs/server.md` lists the settings.

Errors name a setting as it was given: one that was an argument with an equals sign, which the command line turns into
its option, and one of the environment or of the file by its name alone.
"""

import os
import re
import time
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from keylock.errors import InputError
from keylock.text.wanted import wanted
from keylock_server.guard import Guard, GuardLimits

__all__ = ["ServerSettings", "Source"]

T = TypeVar("T")

_MIB: Final = 2**20
_KEY_SETTINGS: Final = ("key_file", "key_passphrase_file", "key_seed_file", "key_provider", "sealed_key")
_PREFIX: Final = "KEYLOCK_SERVER_"
_NAME: Final = re.compile(r"\b([A-Za-z][A-Za-z0-9_]*)=")
# What errors begin with that name no argument.
_ALONE: Final = "the server setting "
_TOGETHER: Final = "the server settings are wrong: "
_ORIGIN: Final = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Source:
    """One bundle to serve, and the way to its key. The attributes are the settings of the same names."""

    bundle: Path
    key_file: Path | None
    key_passphrase_file: Path | None
    key_seed_file: Path | None
    key_provider: str | None
    sealed_key: Path | None


class ServerSettings(BaseSettings):
    """What a server does.

    Attributes:
        bundle: The bundle to serve, a directory or a `.klb` file; or several.
        host: Address to listen on; `0.0.0.0` or `::` for all.
        port: Port to listen on; 0 takes a free one.
        device: `auto`, `cpu`, `cuda` or `tensorrt`.
        engine_cache: Folder of this user's own in which TensorRT keeps what it built for graphs without secrets; none:
            it builds everything at every start.
        keyless: Serve without the key: predictions and decoys only.
        key_file: Key file that opens the sealed key. This and the four settings like it have one value for all bundles,
            or one for each, in their order.
        key_passphrase_file: File with the passphrase that opens the sealed key.
        key_passphrase: That passphrase itself, from `KEYLOCK_KEY_PASSPHRASE`.
        key_seed_file: File with the key seed, instead of the sealed key.
        key_provider: `KIND:ARGUMENT` of any key provider that opens the sealed key, for example `hpke:server.pem`.
        sealed_key: File with a sealed key, in place of the one in the bundle.
        offline_license: File with an offline license: the key for a public copy, and a license for the store.
        issuers: Public keys (PEM) trusted to sign the bundle and licenses; empty: whoever signed the bundle.
        license_store: Database URL of the licenses issued; without it neither revoked nor unknown ones are noticed.
        unlicensed_explanations: `decoy` or `refuse`.
        open_targets: Whether callers without a license may choose the class that is explained; otherwise they get the
            decoy of the predicted one alone.
        stamped_images: Whether a picture that carries the trigger opens by itself, for callers without a license:
            `answer` or `ignore`.
        query_guard: What is done with near copies of one picture: `limit` refuses more of them than the budgets allow,
            `count` only counts them, `off` does not look.
        query_guard_window_s: How long a picture is remembered, and its budgets count, in seconds.
        query_guard_scores: Near copies of a picture that are answered with scores or a decoy.
        query_guard_labels: How much the labels of near copies of a picture may tell: one that is as the one before
            counts 1, another 30; those with scores count too.
        query_guard_memory_bytes: What the guard remembers pictures in, shared by all workers.
        pad_response_times: Whether answers without a license wait as long as checking and charging one takes.
        prices: Units of one image by explainer; `*` is for those that are not named, 1 where that is not either.
        token_keys: Keys (PEM) for access tokens, shared by servers that stand in for each other: the first signs, all
            verify. Empty: one that this process makes for itself.
        receipt_key: Key (PEM) that signs receipts and checkpoints, with its certificate beside it; none: no receipts.
        receipt_revocations: The issuer's signed list of receipt keys that were taken back, handed out to clients; read
            again when it changes, and need not be there yet.
        checkpoint_every_s: How often the state of the audit log is signed, in seconds.
        leeway_s: How far a clock may be off when the dates of a license are checked, in seconds.
        max_message_bytes: Largest request and largest answer.
        compression: How answers are compressed that do not say it themselves: `none`, `gzip` or `deflate`.
        max_images: Most images in one request.
        stream_in_flight: Images of one stream that are taken up before their answers were sent.
        max_image_bytes: Largest image file.
        max_image_pixels: Most pixels of one image.
        max_image_ratio: Most pixels of one image for each pixel that the model looks at; none: only the number above
            counts.
        decoding_memory_bytes: What large images take together while they are decoded, in each process; one that takes
            more by itself is refused.
        workers: Processes that serve, on one address; 0: one for each core.
        batches: Batches that run at once in each of them.
        max_passes: How often the network may run for one image; explainers that ask for more are not offered.
        runtime: What computes graphs: `onnxruntime`, `openvino` (on processors), or `auto` for the faster one that is
            installed; in float32 that is ONNX Runtime.
        variant: Numbers to compute in: `float32`, `bfloat16` (in OpenVINO, where the processor has it), `float16` or
            `int8` where the bundle has such graphs, or `auto` for the fastest whose answers are right.
        least_pcc: How far answers must correlate with those of ONNX Runtime in float32, logits and each map, where
            something else is to compute them.
        ways_file: Where is remembered which runtime and numbers were the fastest here; none: each start finds it out.
        allow_torch: Whether torch, where it is installed, computes explainers that do not compile.
        threads: CPU threads for one batch; 0 shares out the cores there are.
        max_batch: Most images in one run of a graph.
        batch_delay_ms: How long images wait beside an idle runner for others to share a run with, in milliseconds.
        run_s: How long one run should take at most, in seconds: where images are slow, fewer share one.
        queue: Images that may be accepted and not answered yet; beyond it callers are told to come again.
        deadline_s: The longest any call may take, in seconds.
        notice_s: How long the server still takes calls after SIGTERM, while its health says that it leaves, in seconds:
            time for load balancers to notice.
        drain_s: How long running calls may go on after that, in seconds.
        http_port: Port to listen on for HTTP, on the same host and with the same TLS files; 0 takes a free one, none
            speaks gRPC alone.
        http_cors_origins: Origins whose pages may ask over HTTP, such as `https://example.org`, or `*` for all.
        http_page: Whether the page for people is at `/` of that port.
        tls_certificate: Certificate chain (PEM); with `tls_key` it switches TLS on.
        tls_key: Its private key (PEM).
        tls_client_ca: Certificates (PEM); clients must then show one they signed.
        tls_reload_s: How often the files of TLS are looked at for new ones, in seconds.
        store_check_s: How often the store is tried for the health, in seconds.
        canary_check_s: How often the canary of the bundle is explained for the health, in seconds.
        metrics_host: Address that Prometheus metrics are served on.
        metrics_port: Its port; 0 takes a free one, none serves no metrics.
        admin_host: Address that operators reach the server on.
        admin_port: Its port; 0 takes a free one, none offers operators nothing.
        admin_certificate: Certificate chain (PEM) of that port, which has TLS always.
        admin_key: Its private key (PEM).
        admin_client_ca: Certificates (PEM) that sign those of operators: whoever shows such a one may do everything.
        reflection: Whether reflection lists the services.
        config: The TOML file some of these come from.
        ready_file: File that gets `host:port` once the server answers, and is removed when it stops.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_by_name=True,
        validate_default=True,
    )

    bundle: Path | Annotated[tuple[Path, ...], Field(min_length=1)]
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8470
    device: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    engine_cache: Path | None = None

    keyless: bool = False
    key_file: Path | tuple[Path, ...] | None = None
    key_passphrase_file: Path | tuple[Path, ...] | None = None
    key_passphrase: Annotated[SecretStr | None, Field(validation_alias="KEYLOCK_KEY_PASSPHRASE")] = None
    key_seed_file: Path | tuple[Path, ...] | None = None
    key_provider: str | tuple[str, ...] | None = None
    sealed_key: Path | tuple[Path, ...] | None = None
    offline_license: Path | None = None

    issuers: tuple[Path, ...] = ()
    license_store: Annotated[str | None, Field(repr=False)] = None
    unlicensed_explanations: Literal["decoy", "refuse"] = "decoy"
    open_targets: bool = False
    stamped_images: Literal["answer", "ignore"] = "ignore"
    query_guard: Literal["off", "count", "limit"] = "limit"
    query_guard_window_s: _Positive = GuardLimits.window_s
    query_guard_scores: Annotated[int, Field(ge=0, le=1_000_000)] = GuardLimits.scores
    query_guard_labels: Annotated[int, Field(ge=0, le=1_000_000)] = GuardLimits.labels
    query_guard_memory_bytes: Annotated[int, Field(ge=_MIB, le=64 * 2**30)] = GuardLimits.memory_bytes
    pad_response_times: bool = True
    prices: dict[str, Annotated[int, Field(ge=0, le=1_000_000)]] = {}
    token_keys: tuple[Path, ...] = ()
    receipt_key: Path | None = None
    receipt_revocations: Path | None = None
    checkpoint_every_s: _Positive = 60.0
    leeway_s: Annotated[int, Field(ge=0, le=3600)] = 30

    max_message_bytes: Annotated[int, Field(ge=64 * 1024, le=2**31 - 1)] = 64 * _MIB
    compression: Literal["none", "gzip", "deflate"] = "none"
    stream_in_flight: Annotated[int, Field(ge=1, le=4096)] = 32
    max_images: Annotated[int, Field(ge=1, le=4096)] = 32
    max_image_bytes: Annotated[int, Field(ge=1024)] = 32 * _MIB
    max_image_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    max_image_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    decoding_memory_bytes: Annotated[int, Field(ge=32 * _MIB)] = 512 * _MIB
    workers: Annotated[int, Field(ge=0, le=256)] = 1
    max_passes: Annotated[int, Field(ge=1)] = 4096
    runtime: Literal["auto", "onnxruntime", "openvino"] = "auto"
    variant: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "float32"
    least_pcc: Annotated[float, Field(gt=0, le=1)] = 0.999
    ways_file: Path | None = None
    allow_torch: bool = True
    batches: Annotated[int, Field(ge=1, le=64)] = 1
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    max_batch: Annotated[int, Field(ge=1, le=4096)] = 32
    batch_delay_ms: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0.0
    run_s: _Positive = 0.5
    queue: Annotated[int, Field(ge=1, le=100_000)] = 256
    deadline_s: _Positive = 60.0
    notice_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    drain_s: _Positive = 20.0

    http_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    http_cors_origins: tuple[str, ...] = ()
    http_page: bool = True

    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None

    tls_reload_s: _Positive = 5.0

    store_check_s: _Positive = 1.0
    canary_check_s: _Positive = 180.0
    metrics_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    admin_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    admin_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    admin_certificate: Path | None = None
    admin_key: Path | None = None
    admin_client_ca: Path | None = None
    reflection: bool = True
    ready_file: Path | None = None

    config: Path | None = None

    _arguments: frozenset[str] = PrivateAttr(frozenset())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Orders the sources: flags, environment, the file that `config` names. No `.env` file is read."""
        config = init_settings().get("config")
        file = (TomlConfigSettingsSource(settings_cls, toml_file=config),) if config is not None else ()
        return (init_settings, env_settings, *file)

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate= and tls_key= go together: give both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca= needs tls_certificate= and tls_key=")
        if self.queue < self.max_images:
            raise ValueError(
                f"queue= ({self.queue}) has no room for a request of max_images= ({self.max_images}): raise the first"
            )
        admin = ("admin_port", "admin_certificate", "admin_key", "admin_client_ca")
        missing = [name for name in admin if getattr(self, name) is None]
        if missing and len(missing) < len(admin):
            raise ValueError(
                f"{_all_of(missing)} must be given too: operators are served with all of {_all_of(admin)} only"
            )
        if self.admin_port and self.admin_port == self.port:
            raise ValueError("admin_port= is the port that is open to everybody: choose another")
        self._check_http()
        names = ("key_file", "key_passphrase_file", "key_seed_file", "key_provider")
        ways = [name for name in names if getattr(self, name)]
        if len(ways) > 1:
            raise ValueError(f"{_all_of(ways)} were given: one way to the key is enough")
        if self.offline_license is not None:
            if self.key_provider is None or self.sealed_key is not None:
                raise ValueError("offline_license= needs key_provider=, which opens its key, and no sealed_key=")
            if self.license_store is None or not self.issuers:
                raise ValueError("offline_license= needs license_store=, where units are counted, and issuers=")
        if self.keyless and ways:
            raise ValueError(f"keyless= and {ways[0]}= exclude each other")
        if self.offline_license is not None and len(self.bundles) > 1:
            raise ValueError("offline_license= is for one bundle: serve the others by a server of their own")
        for name in _KEY_SETTINGS:
            given = getattr(self, name)
            if isinstance(given, tuple) and len(given) not in (1, len(self.bundles)):
                raise ValueError(
                    f"{name}= was given {len(given)} times for {len(self.bundles)} bundles: give it once for all of "
                    "them, or once for each"
                )
        return self

    def _check_http(self) -> None:
        for name in ("port", "admin_port", "metrics_port"):
            if self.http_port and self.http_port == getattr(self, name):
                raise ValueError(f"http_port= and {name}= are the same: choose another port for one of them")
        if self.http_cors_origins and self.http_port is None:
            raise ValueError("http_cors_origins= needs http_port=")
        for origin in self.http_cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    "http_cors_origins= has an entry that is no origin: write scheme, host and port alone, such as "
                    "https://example.org, or *"
                )

    @property
    def bundles(self) -> tuple[Path, ...]:
        """The bundles to serve, in their order."""
        return _as_tuple(self.bundle)

    @property
    def sources(self) -> "tuple[Source, ...]":
        """The bundles to serve, each with the way to its key."""
        ways = [_as_tuple(getattr(self, name)) for name in _KEY_SETTINGS]
        return tuple(
            Source(bundle, *(way[number if len(way) > 1 else 0] for way in ways))
            for number, bundle in enumerate(self.bundles)
        )

    def make_guard(self) -> Guard | None:
        """Makes the query guard, with its memory; None where there is none."""
        if self.query_guard == "off":
            return None
        limits = GuardLimits(
            window_s=self.query_guard_window_s,
            scores=self.query_guard_scores,
            labels=self.query_guard_labels,
            memory_bytes=self.query_guard_memory_bytes,
        )
        return Guard(limits, time.monotonic)

    @classmethod
    def load(cls, *, config: Path | None = None, **flags: Any) -> Self:  # noqa: ANN401 - the values are checked
        """Reads the settings.

        Args:
            config: A TOML file.
            **flags: Settings that win over the environment and the file; those that are None do not count.

        Raises:
            InputError: If a setting is unknown, missing or out of range, or the file cannot be read.
        """
        values = {name: value for name, value in flags.items() if value is not None}
        elsewhere = {name for name in cls.model_fields if _is_set(name)}
        if config is not None:
            elsewhere |= _read_toml(config).keys()
            values["config"] = config
        try:
            settings = cls(**values)
        except (ValidationError, SettingsError) as error:
            raise InputError(_called(cls._explain(error), values.keys(), elsewhere - values.keys())) from None
        settings._arguments = frozenset(values)
        return settings

    def called(self, name: str) -> str:
        """Returns what errors call a setting: with an equals sign where it was given as an argument."""
        return f"{name}=" if name in self._arguments else name

    @classmethod
    def _explain(cls, error: ValidationError | SettingsError) -> str:
        if isinstance(error, SettingsError):
            found = re.search(r'field "(\w+)"', str(error))
            name = f"{_PREFIX}{found[1].upper()}" if found else "a setting in the environment"
            return f"{name} is malformed: lists are written as JSON, for example '[\"a.pem\"]'"
        first = error.errors(include_url=False, include_input=False)[0]
        if not first["loc"]:
            return f"{_TOGETHER}{first['msg'].removeprefix('Value error, ')}"
        name, *inner = map(str, first["loc"])
        if first["type"] == "missing":
            return f"no {name} is set: give one, or set it as {_PREFIX}{name.upper()} or in the settings file"
        properties = cls.model_json_schema()["properties"]
        if name not in properties:
            return f"there is no server setting {name!r}: docs/server.md lists all of them"
        schema = properties[name]
        if inner and isinstance(schema.get("additionalProperties"), dict):
            return f"{_ALONE}{name}= is wrong at {inner[0]!r}: give {wanted(schema['additionalProperties'])}"
        return f"{_ALONE}{name}= is wrong: give {wanted(schema)}"


def _as_tuple(value: T | tuple[T, ...]) -> tuple[T, ...]:
    return value if isinstance(value, tuple) else (value,)


def _all_of(names: Sequence[str]) -> str:
    *others, last = [f"{name}=" for name in names]
    return f"{', '.join(others)} and {last}" if others else last


def _is_set(name: str) -> bool:
    """Whether the environment has a setting; the case of a name does not matter there."""
    return any(variable.upper() == f"{_PREFIX}{name.upper()}" for variable in os.environ)


def _called(text: str, arguments: Collection[str], elsewhere: Collection[str]) -> str:
    """Returns an error with settings called as they were given.

    One that was given nowhere is called like the others of the same error, so that all fit together.

    Args:
        text: What is wrong, in which settings have equals signs.
        arguments: Settings that were given as arguments.
        elsewhere: Those that come from the environment or the file.
    """
    names = _NAME.findall(text)
    if not any(name in arguments for name in names):
        return _NAME.sub(r"\1", text)
    as_arguments = set(names) - set(elsewhere)
    text = text.removeprefix(_ALONE).removeprefix(_TOGETHER)
    return _NAME.sub(lambda match: match[0] if match[1] in as_arguments else match[1], text)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the settings file {path}: {error.strerror}") from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are both of this kind.
        raise InputError(f"the settings file {path} is no TOML: {error}") from None
