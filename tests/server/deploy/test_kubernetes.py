"""Every manifest is what Kubernetes takes, and what servers need is in it. No cluster has run them."""

import tomllib
from pathlib import Path

import pytest
from command_lines import parse
from kustomization import build, documents

from keylock_server import ServerSettings

validation = pytest.importorskip("kubernetes_validate")

DEPLOY = Path(__file__).parents[3] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
PLACES = ("base", "overlays/tls", "overlays/own-keys")
# Those of Gateway API and KServe are not among the schemas.
FOREIGN = {"GRPCRoute", "ServingRuntime", "InferenceService"}


def pods(built):
    """Every template of a pod, by kind."""
    return {one["kind"]: one["spec"]["template"]["spec"] for one in built if "template" in one.get("spec", {})}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("version", ["1.33", "1.37"])
def test_every_document_is_valid(place, version):
    built = build(KUBERNETES / place)
    assert {"Namespace", "Service", "PodDisruptionBudget", "NetworkPolicy", "Job"} <= {one["kind"] for one in built}
    for document in built:
        if document["kind"] not in FOREIGN:
            validation.validate(document, version, strict=True)


def test_a_mistake_is_found():
    (deployment,) = (one for one in build(KUBERNETES / "base") if one["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readOnly"] = True
    with pytest.raises(validation.ValidationError):
        validation.validate(deployment, "1.37", strict=True)


@pytest.mark.parametrize("place", PLACES)
def test_pods_are_nobody_in_particular_and_write_nowhere(place):
    found = pods(build(KUBERNETES / place))
    assert set(found) == {"Job", "StatefulSet" if place == "overlays/own-keys" else "Deployment"}
    for pod in found.values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            allowed = container["securityContext"]
            assert allowed["readOnlyRootFilesystem"] is True
            assert allowed["allowPrivilegeEscalation"] is False
            assert allowed["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            for mount in container["volumeMounts"]:
                assert mount.get("readOnly") is True or "emptyDir" in volumes[mount["name"]]


@pytest.mark.parametrize("place", PLACES)
def test_a_server_is_not_killed_before_it_has_drained(place):
    found = pods(build(KUBERNETES / place))
    (pod,) = (pod for kind, pod in found.items() if kind != "Job")
    settings = tomllib.loads((KUBERNETES / "base" / "server.toml").read_text("utf-8"))
    (server,) = pod["containers"]
    before = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > before + settings["notice_s"] + settings["drain_s"]
    # A readiness probe must notice that a server leaves while it still takes calls.
    ready = server["readinessProbe"]
    if "grpc" in ready:
        assert before + settings["notice_s"] > ready["periodSeconds"] * ready["failureThreshold"]


@pytest.mark.parametrize("place", PLACES)
def test_every_file_that_is_named_is_mounted(place):
    built = build(KUBERNETES / place)
    for kind, pod in pods(built).items():
        (container,) = pod["containers"]
        roots = [mount["mountPath"] for mount in container["volumeMounts"]]
        named = [one["value"] for one in container["env"] if str(one.get("value", "")).startswith("/")]
        named += [one.split(":", 1)[1] for one in (one.get("value", "") for one in container["env"]) if ":/" in one]
        if kind != "Job":
            settings = tomllib.loads((KUBERNETES / "base" / "server.toml").read_text("utf-8"))
            texts = [value for value in settings.values() if isinstance(value, str)]
            named += [text.removeprefix("hpke:") for text in texts if "/" in text and "://" not in text]
            named += [file for value in settings.values() if isinstance(value, list) for file in value]
        assert named
        for file in named:
            assert any(file == root or file.startswith(f"{root}/") for root in roots), file


@pytest.mark.parametrize("file", ["server.toml", "kubernetes/base/server.toml"])
def test_the_settings_are_those_of_the_server(file):
    settings = ServerSettings.load(config=DEPLOY / file)
    assert settings.license_store == "postgresql:///?service=keylock"
    assert (str(settings.host), settings.port, settings.metrics_port) == ("0.0.0.0", 8470, 9464)  # noqa: S104
    assert settings.notice_s > 0


def test_services_and_selectors_fit_the_pods():
    built = build(KUBERNETES / "base")
    by_kind = {one["kind"]: one for one in built}
    labels = by_kind["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        by_kind["Service"]["spec"]["selector"],
        by_kind["Deployment"]["spec"]["selector"]["matchLabels"],
        by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in pods(built)["Deployment"]["containers"][0]["ports"]}
    assert ports == {"grpc": 8470, "metrics": 9464}
    route = by_kind["GRPCRoute"]["spec"]["rules"][0]
    assert route["backendRefs"] == [{"name": "keylock", "port": 8470}]
    assert (
        by_kind["HorizontalPodAutoscaler"]["spec"]["minReplicas"]
        > by_kind["PodDisruptionBudget"]["spec"]["minAvailable"]
    )


def test_the_route_leads_to_services_that_there_are():
    (route,) = documents(KUBERNETES / "base" / "route.yaml")
    proto = "".join(file.read_text("utf-8") for file in (DEPLOY.parent / "proto").rglob("*.proto"))
    named = [match["method"]["service"] for match in route["spec"]["rules"][0]["matches"]]
    for service in named:
        package, _, name = service.rpartition(".")
        if package != "grpc.health.v1":
            assert f"package {package};" in proto
            assert f"service {name} " in proto
    assert "keylock.v1.AdminService" not in named


def test_the_predictor_of_kserve_fits_its_runtime():
    (runtime,) = documents(KUBERNETES / "kserve" / "serving-runtime.yaml")
    (service,) = documents(KUBERNETES / "kserve" / "inference-service.yaml")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {one["name"] for one in runtime["spec"]["supportedModelFormats"]}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_every_container_runs_a_command_that_there_is():
    containers = [
        one for place in PLACES for pod in pods(build(KUBERNETES / place)).values() for one in pod["containers"]
    ]
    (runtime,) = documents(KUBERNETES / "kserve" / "serving-runtime.yaml")
    containers += runtime["spec"]["containers"]
    assert len(containers) == 7
    for container in containers:
        parse(container["args"])
        for probe in ("startupProbe", "readinessProbe"):
            if "exec" in container.get(probe, {}):
                program, *arguments = container[probe]["exec"]["command"]
                assert program == "keylock"
                parse(arguments)
