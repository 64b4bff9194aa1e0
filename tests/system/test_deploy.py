"""The manifests in deploy: their schemas, and that what they start exists."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from redisagg import AggregationConfig, Settings
from redisagg.cli.app import cli
from redisagg.durations import seconds
from redisagg.instruments.definitions import NAMESPACE
from tests.support.markdown import CHECKOUT

DEPLOY = CHECKOUT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
VERSION = "1.30"

LONGEST_STOP = seconds(AggregationConfig().shutdown_timeout) + 2
"""Seconds that a worker takes to end."""


def objects() -> list[dict[str, Any]]:
    """All objects of the Kubernetes manifests."""
    found = []
    for path in sorted(KUBERNETES.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            found += list(yaml.safe_load_all(path.read_text("utf-8")))
    return found


DEPLOYMENTS = [each for each in objects() if each["kind"] == "Deployment"]


def named(each: dict[str, Any]) -> str:
    return f"{each['kind']}-{each['metadata']['name']}"


each_object = pytest.mark.parametrize("manifest", objects(), ids=named)
each_deployment = pytest.mark.parametrize("manifest", DEPLOYMENTS, ids=named)


def check_command(arguments: list[str]) -> None:
    """Checks that the command line takes these arguments; runs nothing."""
    name, *rest = arguments
    command = cli.commands[name]
    context = command.make_context(name, list(rest), resilient_parsing=False)
    assert context.params


# --- Kubernetes ----------------------------------------------------------------------------------


@each_object
def test_a_manifest_has_the_schema_of_its_kind(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, VERSION, strict=True)
    assert manifest["apiVersion"]


def test_the_schemas_refuse_what_is_mistyped() -> None:
    wrong = yaml.safe_load((KUBERNETES / "hpa.yaml").read_text("utf-8"))
    wrong["spec"]["maxReplica"] = wrong["spec"].pop("maxReplicas")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_the_kustomization_has_all_files() -> None:
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text("utf-8"))["resources"]
    assert {*listed, "kustomization.yaml"} == {path.name for path in KUBERNETES.iterdir()}


@each_deployment
def test_a_container_starts_a_command_that_exists(manifest: dict[str, Any]) -> None:
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["redisagg"]
    check_command(container["args"])
    assert Settings.from_env({each["name"]: "redis://r:1/0" for each in container["env"]})


@each_deployment
def test_a_container_has_no_rights(manifest: dict[str, Any]) -> None:
    pod = manifest["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]


@each_deployment
def test_the_probes_ask_what_is_served(manifest: dict[str, Any]) -> None:
    template = manifest["spec"]["template"]
    [container] = template["spec"]["containers"]
    [port] = container["ports"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
    given = [each for each in container["args"] if each.startswith("--metrics-port=")]
    exporters = 9101
    assert port["containerPort"] == int(given[0].partition("=")[2] if given else exporters)
    probes = {key: each for key, each in container.items() if key.endswith("Probe")}
    paths = {key: each["httpGet"]["path"] for key, each in probes.items()}
    assert set(paths.values()) <= {"/live", "/health"}
    assert paths["livenessProbe"] == "/live"  # a restart repairs no Redis
    assert all(each["httpGet"]["port"] == port["name"] for each in probes.values())


def test_a_worker_has_the_time_to_end() -> None:
    [worker] = [each for each in DEPLOYMENTS if "worker" in each["metadata"]["name"]]
    pod = worker["spec"]["template"]["spec"]
    program = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    slept = re.search(r"sleep\((\d+)\)", program)
    assert slept
    assert pod["terminationGracePeriodSeconds"] > int(slept[1]) + LONGEST_STOP


def test_the_workers_are_scaled_by_a_metric_of_the_exporter() -> None:
    [scaler] = [each for each in objects() if each["kind"] == "HorizontalPodAutoscaler"]
    [metric] = [each["external"]["metric"] for each in scaler["spec"]["metrics"]]
    assert metric["name"] in NAMESPACE
    target = scaler["spec"]["scaleTargetRef"]
    assert target["name"] in [each["metadata"]["name"] for each in DEPLOYMENTS]
    assert scaler["spec"]["maxReplicas"] <= AggregationConfig().partitions
    [rule] = re.findall(r"```yaml\n(.*?)```", (DEPLOY / "README.md").read_text("utf-8"), re.DOTALL)
    assert yaml.safe_load(rule)["rules"]["external"][0]["seriesQuery"] == metric["name"]


# --- compose -------------------------------------------------------------------------------------


def test_the_services_of_compose_start_commands_that_exist() -> None:
    path = DEPLOY / "docker-compose.yml"
    services = yaml.safe_load(path.read_text("utf-8"))["services"]
    assert set(services) == {"redis", "worker", "exporter"}
    for name in ("worker", "exporter"):
        check_command(list(map(str, services[name]["command"])))
        assert Settings.from_env(services[name]["environment"]).url == "redis://redis:6379/0"
        assert services[name]["cap_drop"] == ["ALL"]
    assert "--maxmemory-policy noeviction" in services["redis"]["command"]
    grace = services["worker"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > LONGEST_STOP
    assert (path.parent / services["worker"]["build"] / "Dockerfile").exists()


# --- systemd -------------------------------------------------------------------------------------


def test_the_unit_starts_a_worker(tmp_path: Path) -> None:
    path = DEPLOY / "systemd" / "redisagg-worker.service"
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(path.read_text("utf-8"))
    service = unit["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert program.endswith("/redisagg")
    check_command(arguments)
    assert float(service["TimeoutStopSec"]) > LONGEST_STOP
    assert service["Restart"] == "always"
    if shutil.which("systemd-analyze") is None:
        return
    here = tmp_path / path.name  # its paths do not exist here
    text = path.read_text("utf-8").replace("/opt/shop/.venv/bin/redisagg", "/bin/true")
    here.write_text(text.replace("WorkingDirectory=/opt/shop", "WorkingDirectory=/"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", here], capture_output=True, text=True, check=False
    )
    assert path.name not in done.stderr, done.stderr


# --- the image -----------------------------------------------------------------------------------


def test_the_image_is_built_of_what_the_wheel_needs_and_is_not_root() -> None:
    lines = (CHECKOUT / "Dockerfile").read_text("utf-8").splitlines()
    [user] = [line.split()[1] for line in lines if line.startswith("USER")]
    assert int(user.partition(":")[0]) > 0
    ignored = (CHECKOUT / ".dockerignore").read_text("utf-8").split()
    assert "*" in ignored
    assert {"!redisagg", "!lua", "!pyproject.toml", "!hatch_build.py"} <= set(ignored)
