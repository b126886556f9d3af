"""What a container engine would say of the stack's files, as far as it can be said without one. Run by check.sh.

Each check yields sentences that name what is wrong; none means that it is right. Nothing is started and nothing is written.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import kubernetes.client
import yaml

REPO = pathlib.Path(__file__).resolve().parent.parent.parent
COMPOSE = REPO / "compose/docker-compose.yml"
ENVIRONMENT = REPO / "compose/.env.example"
RULES = REPO / "monitoring/prometheus/freshet.rules.yml"


def documents(path):
    return list(yaml.safe_load_all(path.read_text()))


def example_environment():
    lines = ENVIRONMENT.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def resolved_compose(*profiles):
    """The services of these profiles as docker-compose understands them, with every secret filled in."""
    filled = {name: value or "filled-in" for name, value in example_environment().items()}
    command = ["docker-compose", "-f", str(COMPOSE), "config"]
    done = subprocess.run(command, env={"PATH": os.environ["PATH"], **filled}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"docker-compose config: {done.stderr}")
    # It prints every service, whatever the profile.
    services = yaml.safe_load(done.stdout)["services"]
    return {name: s for name, s in services.items() if set(profiles) & set(s.get("profiles", profiles))}


def is_pinned(image):
    """A tag that names a release: `latest`, `3`, `bookworm` do not, and an image without a tag does not either."""
    _, _, tag = image.rpartition(":")
    return ":" in image and "/" not in tag and bool(re.search(r"\d+[.-]\d+|CU\d+", tag))


def check_dockerfile():
    """Each stage begins with a pinned image, or with another stage."""
    stages = set()
    for line in (REPO / "compose/Dockerfile").read_text().splitlines():
        words = line.split()
        if words[:1] == ["FROM"]:
            if words[1] not in stages and not is_pinned(words[1]):
                yield f"image {words[1]} is not pinned to a release"
            stages.update(words[3:4])


def check_compose():
    """Each service: pinned, bounded in memory, asked how it is, on an address of this machine; each mount's source is there."""
    services = resolved_compose("core", "observe")
    wanted = {"core": {"kafka", "registry", "connect", "sqlserver", "minio", "freshet", "sqlserver-setup", "connectors", "buckets"},
              "observe": {"prometheus", "grafana", "loki", "fluent-bit"}}
    for profile, names in wanted.items():
        found = {name for name, service in services.items() if profile in service.get("profiles", [])}
        if found != names:
            yield f"profile {profile} has {sorted(found)}, not {sorted(names)}"
    awaited = {name: d["condition"] for s in services.values() for name, d in s.get("depends_on", {}).items()}
    for name, service in services.items():
        if "build" not in service and not is_pinned(service["image"]):
            yield f"{name}: image {service['image']} is not pinned to a release"
        if "mem_limit" not in service:
            yield f"{name}: there is no mem_limit"
        if service.get("restart") == "no":
            if "healthcheck" in service:
                yield f"{name}: runs once and has a health check"
        elif not service.get("healthcheck", {}).get("test"):
            yield f"{name}: there is no health check"
        if awaited.get(name) not in (None, "service_completed_successfully" if service.get("restart") == "no" else "service_healthy"):
            yield f"{name}: is waited for by {awaited[name]}"
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                yield f"{name}: port {port} is published on every address by default"
        for volume in service.get("volumes", []):
            source = str(volume).split(":")[0]
            if source.startswith(str(REPO)) and not pathlib.Path(source).exists():
                yield f"{name}: {source} is mounted and does not exist"


def check_environment():
    """.env.example names what compose asks for, nothing else, and holds no secret."""
    asked = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE.read_text()))
    optional = {"FRESHET_VERSION", "FRESHET_LOG"}
    named = example_environment()
    for name in sorted(asked - set(named) - optional):
        yield f"{ENVIRONMENT.name} lacks {name}"
    for name in sorted(set(named) - asked):
        yield f"{ENVIRONMENT.name} has {name}, which nothing asks for"
    for name, value in named.items():
        if value and re.search("PASSWORD|SECRET|KEY", name):
            yield f"{ENVIRONMENT.name}: {name} has a value"


def check_alerts():
    """Each alert is tested both ways: that it fires, and that it stays silent."""
    alerts = {r["alert"] for group in documents(RULES)[0]["groups"] for r in group["rules"] if "alert" in r}
    fires, silent = set(), set()
    for test in documents(RULES.with_suffix(".test.yml"))[0]["tests"]:
        for check in test["alert_rule_test"]:
            (fires if check["exp_alerts"] else silent).add(check["alertname"])
    for name in sorted(alerts - fires):
        yield f"no test lets {name} fire"
    for name in sorted(alerts - silent):
        yield f"no test lets {name} stay silent"
    for name in sorted((fires | silent) - alerts):
        yield f"{name} is tested and is no alert"


def check_monitoring():
    """The other files of the observing side parse, and name each other rightly."""
    for path in sorted((REPO / "monitoring").rglob("*.yml")):
        documents(path)
    (dashboards,) = documents(REPO / "monitoring/grafana/provisioning/dashboards/dashboards.yml")
    folder = dashboards["providers"][0]["options"]["path"]
    mounts = resolved_compose("core", "observe")["grafana"]["volumes"]
    if not any(f":{folder}/" in mount for mount in mounts):
        yield f"Grafana looks for dashboards in {folder}, where none is mounted"
    dashboard = json.loads((REPO / "monitoring/grafana/freshet.json").read_text())
    titles = [p["title"] for p in dashboard["panels"] if p["type"] != "row" and not p.get("targets")]
    for title in titles:
        yield f"the panel {title!r} asks for nothing"


def check_connectors():
    """Connectors take addresses and secrets from the environment that compose gives to Connect, and agree on how they write."""
    environment = resolved_compose("core")["connect"]["environment"]
    files = sorted((REPO / "compose/connect").glob("*.json"))
    converters = []
    for path in files:
        connector = json.loads(path.read_text())
        converters.append({k: v for k, v in connector.items() if k.startswith(("key.converter", "value.converter"))})
        for key, value in connector.items():
            if not isinstance(value, str):
                yield f"{path.name}: {key} is not text, which is all that Connect takes"
            elif "password" in key and not value.startswith("${env:"):
                yield f"{path.name}: {key} stands in the file"
        if path.stem.startswith("sqlserver"):
            for name in re.findall(r"\$\{env:(\w+)\}", path.read_text()):
                if name not in environment:
                    yield f"{path.name}: compose gives Connect no {name}"
    if any(c != converters[0] for c in converters):
        yield "the connectors do not all write alike"


def check_manifests():
    """The kustomize base: every object by Kubernetes' own schema (the types of its official client), then by the house's rules."""
    done = subprocess.run(["kubectl", "kustomize", str(REPO / "deploy/base")], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        yield f"kubectl kustomize: {done.stderr.strip()}"
        return
    objects = list(yaml.safe_load_all(done.stdout))
    for thing in objects:
        name = f"{thing['kind']}/{thing['metadata']['name']}"
        group, _, version = thing["apiVersion"].rpartition("/")
        model = version.capitalize() + thing["kind"]
        if not hasattr(kubernetes.client, model):
            yield f"{name}: there is no {thing['apiVersion']} {thing['kind']}"
            continue
        yield from (f"{name}{problem}" for problem in misfits(thing, model))
        pod = thing.get("spec", {}).get("template", {}).get("spec")
        if pod:
            claims = {c["metadata"]["name"] for c in thing["spec"].get("volumeClaimTemplates", [])}
            yield from (f"{name}: {problem}" for problem in careless(pod, claims, once=thing["kind"] == "Job"))
    compose = resolved_compose("core")
    images = {c["image"] for o in objects for c in o.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])}
    for name, service in compose.items():
        if service["image"] not in images:
            yield f"{name}: the base does not run compose's image {service['image']}"
    asked = {e["valueFrom"]["secretKeyRef"]["key"] for o in objects
             for c in o.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
             for e in c.get("env", []) if "valueFrom" in e}
    for name in sorted(asked - set(example_environment())):
        yield f"the base asks for the secret {name}, which {ENVIRONMENT.name} lacks"


def misfits(value, type_name, path=""):
    """Where a value differs from a type of the official client: unknown fields, missing ones, wrong kinds."""
    listed = re.fullmatch(r"list\[(.+)\]", type_name)
    mapped = re.fullmatch(r"dict\(str, (.+)\)", type_name)
    if listed:
        if not isinstance(value, list):
            yield f"{path}: is not a list"
            return
        for n, item in enumerate(value):
            yield from misfits(item, listed[1], f"{path}[{n}]")
    elif mapped:
        if not isinstance(value, dict):
            yield f"{path}: is not a map"
            return
        for key, item in value.items():
            yield from misfits(item, mapped[1], f"{path}.{key}")
    elif hasattr(kubernetes.client, type_name):
        if type_name == "IntOrString" or not isinstance(value, dict):
            if not isinstance(value, (int, str)):
                yield f"{path}: is not a {type_name}"
            return
        model = getattr(kubernetes.client, type_name)
        fields = {json_name: name for name, json_name in model.attribute_map.items()}
        for key, item in value.items():
            if key not in fields:
                yield f"{path}: has no field {key}"
            else:
                yield from misfits(item, model.openapi_types[fields[key]], f"{path}.{key}")
        try:
            # The constructor's own check sees what is required and not there.
            model(**{fields[key]: item for key, item in value.items() if key in fields})
        except ValueError as error:
            yield f"{path}: {error}"
    else:
        kinds = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object, "datetime": str}
        if not isinstance(value, kinds[type_name]) or (type_name == "int" and isinstance(value, bool)):
            yield f"{path}: is {value!r}, not {type_name}"


def careless(pod, claims, once):
    """What every pod of ours has: no root, no token, no variables of other services; pinned images, bounded memory, probes."""
    if not pod.get("securityContext", {}).get("runAsNonRoot"):
        yield "may run as root"
    if pod.get("automountServiceAccountToken") is not False:
        yield "has a token of the cluster's API"
    if pod.get("enableServiceLinks") is not False:
        yield "gets other services' addresses as variables"
    mounted = claims | {v["name"] for v in pod.get("volumes", [])}
    for container in pod["containers"]:
        name = container["name"]
        if container["image"] != "freshet:dev" and not is_pinned(container["image"]):
            yield f"{name}: image {container['image']} is not pinned to a release"
        if "memory" not in container.get("resources", {}).get("limits", {}):
            yield f"{name}: memory has no limit"
        if not once and not {"readinessProbe", "livenessProbe"} <= set(container):
            yield f"{name}: nobody asks how it is"
        if container.get("securityContext", {}).get("allowPrivilegeEscalation") is not False:
            yield f"{name}: may gain privileges"
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in mounted:
                yield f"{name}: mounts {mount['name']}, which is no volume"


def main():
    failed = 0
    for check in (check_dockerfile, check_compose, check_environment, check_alerts, check_monitoring, check_connectors, check_manifests):
        problems = list(check())
        print(f"{check.__name__.removeprefix('check_'):12} {'ok' if not problems else 'WRONG'}")
        for problem in problems:
            print(f"  {problem}")
        failed += bool(problems)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
