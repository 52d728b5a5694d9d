"""The manifests are what KubeRay takes, and fit the recipes that they carry. No cluster is needed."""

import re
import shlex
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from branchgrpo.cluster.on_ray.placement import Demand, demands, reward_pools
from branchgrpo.proto.recipe import load_recipe
from branchgrpo.proto.settings import RunSettings
from jsonschema import ValidationError
from kustomize import FOLDERS, KUBERNETES, Manifest, by_kubectl, rendered
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.core.generated.autoscaler_pb2 import ResourceRequest, ResourceRequestByCount
from ray.core.generated.common_pb2 import LabelSelector, LabelSelectorConstraint, LabelSelectorOperator
from schemas import check
from support import ROOT

SIZES = ["one-gpu", "small", "large"]
POOLS = {"pools.rollout_workers": "rollout", "pools.learner": "learner", "pools.rewards": "reward"}
"""Setting -> group of workers."""


def cluster_of(size: str) -> Manifest:
    return rendered(f"overlays/{size}/cluster")["RayCluster", "branchgrpo"]


def job_of(size: str) -> Manifest:
    return rendered(f"overlays/{size}/run")["RayJob", "branchgrpo"]


def templates(cluster: Manifest) -> dict[str, Manifest]:
    """Group -> its pods, with the labels that KubeRay adds."""
    spec = deepcopy(cluster["spec"])
    groups = {"headgroup": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}
    for name, group in groups.items():
        kind = "head" if name == "headgroup" else "worker"
        group["template"]["metadata"]["labels"] |= {"ray.io/group": name, "ray.io/node-type": kind}
    return {name: group["template"] for name, group in groups.items()}


def container(template: Manifest) -> Manifest:
    (only,) = template["spec"]["containers"]
    return only


def matches(selector: Manifest, template: Manifest) -> bool:
    return selector.items() <= template["metadata"]["labels"].items()


def train_arguments(size: str) -> list[str]:
    """Of the job's command, after `branchgrpo train`."""
    execute, program, command, *arguments = shlex.split(job_of(size)["spec"]["entrypoint"])
    assert (execute, program, command) == ("exec", "branchgrpo", "train")
    return arguments


def recipe_of(size: str, folder: Path) -> RunSettings:
    """What the job's command makes of the recipe that is mounted in the head."""
    path, *overrides = train_arguments(size)
    files = rendered(f"overlays/{size}/run")["ConfigMap", "branchgrpo-recipe"]["data"]
    for name, text in files.items():
        (folder / name).write_text(text.replace("/opt/branchgrpo/recipes/", f"{ROOT}/recipes/"))
    assert path == "/etc/branchgrpo/recipe.yaml"
    return load_recipe(folder / "recipe.yaml", overrides)


@pytest.mark.parametrize("folder", FOLDERS)
def test_manifests_are_valid(folder: str) -> None:
    for manifest in rendered(folder).values():
        check(manifest)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.parametrize("folder", FOLDERS)
def test_kubectl_renders_the_same(folder: str) -> None:
    assert rendered(folder) == by_kubectl(folder)


def test_wrong_manifests_are_refused() -> None:
    """Unknown fields and wrong types, in a resource of KubeRay, of Kubernetes and of the Prometheus Operator."""
    for folder, kind, change in (
        ("overlays/small/cluster", "RayCluster", {"rayversion": "2"}),
        ("overlays/small/cluster", "RayCluster", {"workerGroupSpecs": [{}]}),
        ("overlays/small/run", "RayJob", {"backoffLimit": "3"}),
        ("overlays/small/run", "PodDisruptionBudget", {"minimumAvailable": 1}),
        ("monitoring", "PodMonitor", {"podMetricsEndpoints": [{"interval": 15}]}),
    ):
        manifest = next(found for found in rendered(folder).values() if found["kind"] == kind)
        check(manifest)
        with pytest.raises(ValidationError):
            check({**manifest, "spec": {**manifest["spec"], **change}})


@pytest.mark.parametrize("size", SIZES)
def test_a_run_brings_the_cluster_of_its_size(size: str) -> None:
    run = rendered(f"overlays/{size}/run")
    assert ("RayCluster", "branchgrpo") not in run
    assert job_of(size)["spec"]["rayClusterSpec"] == cluster_of(size)["spec"]


@pytest.mark.parametrize("size", SIZES)
def test_kuberay_takes_the_job(size: str) -> None:
    """What KubeRay's operator checks beyond the schema."""
    spec = job_of(size)["spec"]
    assert spec["backoffLimit"] > 0
    assert "clusterSelector" not in spec  # refused with backoffLimit
    assert spec["submissionMode"] == "SidecarMode"
    assert spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert not {"submitterPodTemplate", "submitterConfig"} & spec.keys()
    assert spec["shutdownAfterJobFinishes"]
    assert int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 3600


def launched(cluster: Manifest, wanted: list[Demand]) -> dict[str, int]:
    """Group -> pods that Ray's autoscaler makes of an empty cluster for these processes."""
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(cluster), skip_content_hash=True)
    requests = [
        ResourceRequestByCount(
            request=ResourceRequest(
                resources_bundle=demand.each,
                label_selectors=[
                    LabelSelector(
                        label_constraints=[
                            LabelSelectorConstraint(
                                label_key=key, operator=LabelSelectorOperator.LABEL_OPERATOR_IN, label_values=[value]
                            )
                            for key, value in demand.labels.items()
                        ]
                    )
                ],
            ),
            count=demand.count,
        )
        for demand in wanted
    ]
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            resource_requests=requests,
        )
    )
    assert not reply.infeasible_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch}


@pytest.mark.parametrize("size", SIZES)
def test_the_autoscaler_brings_what_the_recipe_asks_for(size: str, tmp_path: Path) -> None:
    settings, cluster = recipe_of(size, tmp_path), cluster_of(size)
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    wanted = demands(settings)
    group_of = {d.pool: next(group for setting, group in POOLS.items() if d.pool.startswith(setting)) for d in wanted}
    for demand in wanted:
        assert demand.labels == {"pool": group_of[demand.pool]} == groups[group_of[demand.pool]]["labels"]
        assert launched(cluster, [demand]).keys() == {group_of[demand.pool]}  # and no other group
    assert launched(cluster, wanted).keys() == groups.keys()
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"

    most = {f"pools.rewards.{model}": pool.max_replicas for model, pool in reward_pools(settings).items()}
    most["pools.rollout_workers"] = settings.pools.rollout_workers.max_count
    largest = [replace(demand, count=most.get(demand.pool) or demand.count) for demand in wanted]
    assert launched(cluster, largest) == {name: group["maxReplicas"] for name, group in groups.items()}
    with pytest.raises(AssertionError):  # there is an end to it
        launched(cluster, [replace(demand, count=demand.count + 64) for demand in largest])


@pytest.mark.parametrize("size", SIZES)
def test_the_run_lies_on_the_shared_volume(size: str, tmp_path: Path) -> None:
    settings = recipe_of(size, tmp_path)
    assert settings.resume == "auto"
    assert settings.pools.placement_timeout_seconds > 0
    claims = {claim["metadata"]["name"]: claim for claim in rendered("storage").values()}
    for template in templates(cluster_of(size)).values():
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in container(template)["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} == volumes.keys()
        runs = volumes[mounts[str(settings.runs)]["name"]]["persistentVolumeClaim"]["claimName"]
        assert runs == "branchgrpo-runs"
        assert claims[runs]["spec"]["accessModes"] == ["ReadWriteMany"]
        assert not mounts[str(settings.runs)].get("readOnly")
        assert volumes[mounts["/models"]["name"]]["persistentVolumeClaim"]["claimName"] in claims
    if settings.policy.pretrained != "glyphs":
        assert Path(settings.policy.pretrained).is_relative_to("/models")


@pytest.mark.parametrize("size", SIZES)
def test_the_recipe_is_mounted_in_the_head(size: str) -> None:
    head = templates(cluster_of(size))["headgroup"]
    (name,) = (m["name"] for m in container(head)["volumeMounts"] if m["mountPath"] == "/etc/branchgrpo")
    (volume,) = (volume for volume in head["spec"]["volumes"] if volume["name"] == name)
    assert ("ConfigMap", volume["configMap"]["name"]) in rendered(f"overlays/{size}/run")


@pytest.mark.parametrize("size", SIZES)
def test_pods_end_gracefully_and_run_without_privileges(size: str) -> None:
    for name, template in templates(cluster_of(size)).items():
        spec, only = template["spec"], container(template)
        if name in ("rollout", "reward"):
            command = only["lifecycle"]["preStop"]["exec"]["command"]
            assert command[:3] == ["branchgrpo", "drain", "--seconds"]
            assert spec["terminationGracePeriodSeconds"] > int(command[3])
        assert spec["restartPolicy"] == "Never"
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] == 1000
        assert not only["securityContext"]["allowPrivilegeEscalation"]
        assert only["resources"]["requests"] == only["resources"]["limits"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert only[probe]["httpGet"] == {"path": "/api/healthz", "port": 52365}
        gpus = "nvidia.com/gpu" in only["resources"]["limits"]
        assert gpus == any(toleration["key"] == "nvidia.com/gpu" for toleration in spec.get("tolerations", []))


@pytest.mark.parametrize("size", SIZES)
def test_budgets_keep_head_and_learner_alone(size: str) -> None:
    """A group of rollouts or rewards may have one pod, whose node even a budget of one pod could never drain."""
    pods, kept = templates(cluster_of(size)), {}
    for budget in rendered(f"overlays/{size}/run").values():
        if budget["kind"] == "PodDisruptionBudget":
            selector = budget["spec"]["selector"]["matchLabels"]
            (group,) = (name for name, template in pods.items() if matches(selector, template))
            assert budget["spec"].keys() == {"minAvailable", "selector"}  # no other works without a scale subresource
            kept[group] = budget["spec"]["minAvailable"]
    most = {group["groupName"]: group["maxReplicas"] for group in cluster_of(size)["spec"]["workerGroupSpecs"]}
    assert kept.keys() == {"headgroup", "learner"}
    assert kept["headgroup"] > 1
    assert kept["learner"] > most["learner"]


@pytest.mark.parametrize("size", SIZES)
def test_prometheus_finds_the_head_and_the_pods(size: str, tmp_path: Path) -> None:
    run, watching, pods = rendered(f"overlays/{size}/run"), rendered("monitoring"), templates(cluster_of(size))
    service = run["Service", "branchgrpo"]
    (head,) = (template for template in pods.values() if matches(service["spec"]["selector"], template))
    ports = {port["name"]: port["containerPort"] for port in container(head)["ports"]}
    assert all(ports[port["targetPort"]] == port["port"] for port in service["spec"]["ports"])
    assert ports["run-metrics"] == recipe_of(size, tmp_path).logging.metrics_port
    (discovery,) = watching["ScrapeConfig", "branchgrpo"]["spec"]["httpSDConfigs"]
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert discovery["url"] == f"http://{host}:{ports['run-metrics']}/sd"

    monitor = watching["PodMonitor", "branchgrpo-ray"]["spec"]
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= ports.keys()
    for template in pods.values():
        assert matches(monitor["selector"]["matchLabels"], template)
        assert {"name": "metrics", "containerPort": 8080} in container(template)["ports"]


@pytest.mark.parametrize("size", SIZES)
def test_the_autoscaler_is_on_and_tokens_are_asked_for(size: str) -> None:
    spec = cluster_of(size)["spec"]
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token", "secretName": "branchgrpo-ray-token"}
    assert not any(kind == "Secret" for folder in FOLDERS for kind, _ in rendered(folder))


def test_one_image_and_one_ray() -> None:
    images = {container(template)["image"] for size in SIZES for template in templates(cluster_of(size)).values()}
    (image,) = images
    assert f"-t {image} " in (KUBERNETES / "Dockerfile").read_text()
    instructions = re.findall(r"^(?:FROM|ARG|COPY|USER|RUN) .*", (KUBERNETES / "Dockerfile").read_text(), re.MULTILINE)
    versions = {cluster_of(size)["spec"]["rayVersion"] for size in SIZES}
    assert [f"ARG RAY_VERSION={version}" for version in versions] == instructions[:1]
    assert {line.split()[1] for line in instructions if line.startswith("FROM")} == {
        "rayproject/ray:${RAY_VERSION}-py311-gpu"
    }
    torch = re.search(r"torch==[\d.]+", (ROOT / "Makefile").read_text())
    assert torch
    assert set(re.findall(r"torch==[\d.]+", (KUBERNETES / "Dockerfile").read_text())) == {torch.group()}
    assert "COPY recipes /opt/branchgrpo/recipes" in instructions  # one-gpu starts from one
    assert instructions[-1] == "USER 1000:100"


def test_the_runbook_names_what_is_there() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    named = re.findall(r"-[fk] (cluster/\S+)", page)
    assert {f"cluster/kubernetes/overlays/{size}/run" for size in SIZES} <= set(named)
    assert all((ROOT / path).exists() for path in named)
    resources: Any = [kind_and_name for folder in FOLDERS for kind_and_name in rendered(folder)]
    for kind, name in re.findall(r"\b(rayjob|raycluster|pvc|configmap)[ /](branchgrpo[\w-]*)", page):
        kind = {"pvc": "persistentvolumeclaim"}.get(kind, kind)
        assert (kind, name) in [(kind.lower(), name) for kind, name in resources]
