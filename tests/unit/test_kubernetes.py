"""The manifests: valid by Kubernetes's own schemas, complete, and about this program. Those of KEDA: test_keda.py."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from brewctl.config import SHORT_NAMES
from tests.deploying import DRAIN_S, ROOT, check, unknown

FOLDER = ROOT / "deploy" / "kubernetes"
BASE, KEDA, EXAMPLE = FOLDER / "base", FOLDER / "keda", FOLDER / "overlays" / "example"
# The oldest has the sleep of preStop.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
# What a Deployment's role talks to and is reached by, in ports' numbers and names.
POSTGRES, KAFKA = {5432}, {9092, 9093}
NEEDS = {
    "order": POSTGRES,
    **dict.fromkeys(("publisher", *SHORT_NAMES, "exporter", "retention", "migrate"), POSTGRES | KAFKA),
}


def documents(folder: Path) -> list[Any]:
    """All objects of a folder's files, without the kustomization."""
    files = [each for each in sorted(folder.glob("*.yaml")) if each.name != "kustomization.yaml"]
    return [each for file in files for each in yaml.safe_load_all(file.read_text("utf-8"))]


OBJECTS = documents(BASE)
SCALERS = documents(KEDA)


def of_kind(*kinds: str) -> list[Any]:
    return [each for each in OBJECTS if each["kind"] in kinds]


WORKLOADS = of_kind("Deployment", "Job")
DEPLOYMENTS = {each["metadata"]["name"]: each for each in of_kind("Deployment")}


def label(each: Any) -> str:
    return f"{each['kind']}-{each['metadata']['name']}"


def component(each: Any) -> str:
    return str(each["metadata"]["labels"]["app.kubernetes.io/component"])


def pod(workload: Any) -> Any:
    return workload["spec"]["template"]["spec"]


def containers(workload: Any) -> Iterator[Any]:
    yield from pod(workload).get("initContainers", ())
    yield from pod(workload)["containers"]


def selects(selector: Any, labels: dict[str, str]) -> bool:
    """Whether a selector of any kind takes a Pod with these labels."""
    wanted = selector.get("matchLabels", {})
    among = selector.get("matchExpressions", ())
    assert all(each["operator"] == "In" for each in among)
    return wanted.items() <= labels.items() and all(labels.get(each["key"]) in each["values"] for each in among)


def labels_of(workload: Any) -> dict[str, str]:
    return dict(workload["spec"]["template"]["metadata"]["labels"])


each_workload = pytest.mark.parametrize("workload", WORKLOADS, ids=label)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("each", OBJECTS, ids=label)
def test_kubernetes_takes_it(each: Any, version: str) -> None:
    kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("folder", [BASE, KEDA, EXAMPLE], ids=lambda folder: folder.name)
def test_every_file_is_named_and_every_name_is_there(folder: Path) -> None:
    told = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    named = {*told["resources"], *told.get("components", ()), *(each.get("path") for each in told.get("patches", ()))}
    assert all((folder / each).exists() for each in named - {None})
    files = {each.name for each in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert files <= named


def test_the_roles_are_all_there() -> None:
    assert {component(each) for each in WORKLOADS} == NEEDS.keys()
    names = [label(each) for each in OBJECTS]
    assert len(set(names)) == len(names)


@each_workload
def test_its_command_lines_are_ones_that_the_program_takes(workload: Any) -> None:
    for each in containers(workload):
        assert "command" not in each, "the image's entry is brewctl"
        check(
            [
                argument.replace("$(POD_NAME)", f"{workload['metadata']['name']}-7c9d8f6b54-x2x2x")
                for argument in each["args"]
            ]
        )
        used = {"POD_NAME"} if any("$(POD_NAME)" in argument for argument in each["args"]) else set()
        assert used == {"POD_NAME"} & {variable["name"] for variable in each.get("env", ())}


@each_workload
def test_its_variables_are_ones_that_the_program_reads(workload: Any) -> None:
    named = [variable["name"] for each in containers(workload) for variable in each.get("env", ())]
    assert not unknown([name for name in named if name != "POD_NAME"])


def test_the_variables_for_all_are_ones_that_the_program_reads_and_hold_no_secret() -> None:
    for folder in (BASE, EXAMPLE):
        (generator,) = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))["configMapGenerator"]
        names = [each.partition("=")[0] for each in generator["literals"]]
        assert not unknown(names)
        assert not [each for each in names if each.endswith(("PASSWORD", "URL", "TOKEN"))]
        for workload in WORKLOADS:
            sources = [source for each in containers(workload) for source in each.get("envFrom", ())]
            assert all(source["configMapRef"]["name"] == generator["name"] for source in sources)


@each_workload
def test_it_may_do_nothing_that_it_need_not(workload: Any) -> None:
    spec = pod(workload)
    assert spec["automountServiceAccountToken"] is False
    accounts = {each["metadata"]["name"]: each for each in of_kind("ServiceAccount")}
    assert accounts[spec["serviceAccountName"]]["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in containers(workload):
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert each["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in each["resources"]["limits"]


@each_workload
def test_what_it_mounts_is_there_and_secrets_are_files(workload: Any) -> None:
    volumes = {each["name"]: each for each in pod(workload)["volumes"]}
    mounted = {mount["name"]: mount for each in containers(workload) for mount in each["volumeMounts"]}
    assert volumes.keys() == mounted.keys()
    for each in containers(workload):
        paths = [mount["mountPath"] for mount in each["volumeMounts"]]
        assert "/tmp" in paths
        for variable in each.get("env", ()):
            if variable["name"].endswith("_FILE"):
                assert any(variable["value"].startswith(f"{path}/") for path in paths), variable
            assert "secretKeyRef" not in variable.get("valueFrom", {})
    assert volumes["database"]["secret"]["secretName"] == f"brew-{component(workload)}-database"


@each_workload
def test_it_has_the_time_to_drain(workload: Any) -> None:
    if workload["kind"] == "Job":
        return
    (container,) = pod(workload)["containers"]
    before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pod(workload)["terminationGracePeriodSeconds"] >= before + DRAIN_S
    if component(workload) == "order":
        assert before, "endpoints need a moment to forget it"


@pytest.mark.parametrize("workload", [each for each in WORKLOADS if "--http" in str(each)], ids=label)
def test_its_probes_ask_the_pages_of_the_port_that_it_serves(workload: Any) -> None:
    (container,) = pod(workload)["containers"]
    port = {each["name"]: each["containerPort"] for each in container["ports"]}["http"]
    assert container["args"][container["args"].index("--http") + 1] == f"0.0.0.0:{port}"
    pages = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {name: each["path"] for name, each in pages.items()} == {
        "startupProbe": "/livez",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }
    assert {each["port"] for each in pages.values()} == {"http"}


def test_services_and_budgets_select_the_pods_that_they_are_for() -> None:
    for each in of_kind("Service", "PodDisruptionBudget"):
        selector = each["spec"]["selector"]
        selector = selector if each["kind"] == "PodDisruptionBudget" else {"matchLabels": selector}
        chosen = {component(workload) for workload in WORKLOADS if selects(selector, labels_of(workload))}
        assert chosen == {component(each)}
    several = {name for name, each in DEPLOYMENTS.items() if each["spec"]["replicas"] > 1}
    assert {each["metadata"]["name"] for each in of_kind("PodDisruptionBudget")} == several
    (service,) = of_kind("Service")
    assert service["spec"]["clusterIP"] == "None"
    (container,) = pod(DEPLOYMENTS["brew-order"])["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert all(each["targetPort"] in ports for each in service["spec"]["ports"])
    assert str(ports["grpc"]) == container["args"][container["args"].index("--port") + 1]


@each_workload
def test_its_selector_and_its_spread_are_of_its_own_pods(workload: Any) -> None:
    labels = labels_of(workload)
    assert labels["app.kubernetes.io/component"] == component(workload)
    selectors = [each["labelSelector"] for each in pod(workload).get("topologySpreadConstraints", ())]
    if workload["kind"] == "Deployment":
        selectors.append(workload["spec"]["selector"])
    for selector in selectors:
        assert [component(each) for each in WORKLOADS if selects(selector, labels_of(each))] == [component(workload)]


@each_workload
def test_it_reaches_what_it_needs_and_nothing_else(workload: Any) -> None:
    mine = [
        each["spec"] for each in of_kind("NetworkPolicy") if selects(each["spec"]["podSelector"], labels_of(workload))
    ]
    assert any(
        each["policyTypes"] == ["Ingress", "Egress"] and not {"ingress", "egress"} & each.keys() for each in mine
    )
    out = {port["port"] for each in mine for rule in each.get("egress", ()) for port in rule["ports"]}
    assert out == NEEDS[component(workload)] | {53}
    into = {port["port"] for each in mine for rule in each.get("ingress", ()) for port in rule["ports"]}
    ports = {port["name"] for each in containers(workload) for port in each.get("ports", ())}
    assert into == ports
    assert all(rule["from"] for each in mine for rule in each.get("ingress", ()))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The example overlay as kustomize makes it, with secrets that a test has written."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl, which has kustomize built in, is not installed")
    folder = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
    shutil.copytree(FOLDER, folder)
    secrets = folder / "overlays" / "example" / "secrets"
    told = yaml.safe_load((secrets / "kustomization.yaml").read_text("utf-8"))
    for file in (each.rpartition("=")[2] for generator in told["secretGenerator"] for each in generator["files"]):
        (secrets / file).write_text("x\n")
    made = subprocess.run(
        ["kubectl", "kustomize", str(secrets.parent)], capture_output=True, text=True, check=False, timeout=60
    )
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


def test_kustomize_makes_objects_that_kubernetes_takes(built: list[Any]) -> None:
    for each in built:
        if each["kind"] != "ScaledObject":
            kubernetes_validate.validate(each, VERSIONS[-1], strict=True)
    assert {label(each) for each in [*OBJECTS, *SCALERS]} <= {label(each) for each in built}


def test_every_secret_that_is_mounted_is_made_every_image_has_its_tag_and_keda_alone_counts(built: list[Any]) -> None:
    made = {
        kind: {each["metadata"]["name"] for each in built if each["kind"] == kind} for kind in ("Secret", "ConfigMap")
    }
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in built if each["kind"] == "ScaledObject"}
    for each in built:
        if each["kind"] not in {"Deployment", "Job"}:
            continue
        secrets = {volume["secret"]["secretName"] for volume in pod(each)["volumes"] if "secret" in volume}
        assert secrets <= made["Secret"]
        for container in containers(each):
            image, _, tag = container["image"].rpartition(":")
            assert image.endswith("/brewctl")
            assert tag not in {"", "latest"}
            assert {source["configMapRef"]["name"] for source in container.get("envFrom", ())} <= made["ConfigMap"]
            paths = {mount["mountPath"] for mount in container["volumeMounts"]}
            files = [variable["value"] for variable in container.get("env", ()) if variable["name"].endswith("_FILE")]
            assert all(str(Path(file).parent) in paths for file in files)
        if each["kind"] == "Deployment":
            assert ("replicas" in each["spec"]) == (each["metadata"]["name"] not in scaled)
