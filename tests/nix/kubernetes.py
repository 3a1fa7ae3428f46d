"""Whether manifests of mkKubernetes are valid and hold together: kubernetes.py FILE GPUS [nodes=N]."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate

# Of other projects: Kubernetes has no schema of theirs.
OTHERS = ("ServiceMonitor", "LeaderWorkerSet")


def valid(item: dict[str, Any]) -> None:
    """By Kubernetes' own schema, in which no other field is allowed."""
    kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)


def main(file: Path, gpus: int, nodes: int) -> None:
    found = json.loads(file.read_text())
    assert found["kind"] == "List"
    items = {item["kind"]: item for item in found["items"]}
    assert len(items) == len(found["items"])
    for item in items.values():
        if item["kind"] not in OTHERS:
            valid(item)
    if nodes == 1:
        assert not {"LeaderWorkerSet", "Role", "RoleBinding", "ServiceAccount", "ConfigMap"} & set(items)
        deployment = items["Deployment"]["spec"]
        template = deployment["template"]
        labels = template["metadata"]["labels"]
        assert deployment["selector"]["matchLabels"].items() <= labels.items()
        restricted(template["spec"], gpus)
        assert template["spec"]["automountServiceAccountToken"] is False
        times_agree(template["spec"])
        for spread in template["spec"].get("topologySpreadConstraints", []):
            assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    else:
        template = group(items, gpus, nodes)
    answers(items, template)


def answers(items: dict[str, Any], template: dict[str, Any]) -> None:
    """What the Service leads to, and when it does."""
    (container,) = template["spec"]["containers"]
    labels = template["metadata"]["labels"]
    # Each that selects Pods selects these.
    assert items["Service"]["spec"]["selector"].items() <= labels.items()
    assert items["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    for port in items["Service"]["spec"]["ports"]:
        assert ports[port["targetPort"]] == port["port"]
    for probe in ("readinessProbe", "livenessProbe"):
        asked = container[probe].get("httpGet") or container[probe]["tcpSocket"]
        assert asked["port"] in ports
    # Started is when a generation has succeeded.
    assert "ready" in container["startupProbe"]["exec"]["command"]
    if "ServiceMonitor" in items:
        monitor = items["ServiceMonitor"]["spec"]
        assert monitor["selector"]["matchLabels"].items() <= items["Service"]["metadata"]["labels"].items()
        labels_of = {
            r["targetLabel"]: r["replacement"] for e in monitor["endpoints"] for r in e["relabelings"]
        }
        assert labels_of == {"job": "enginix", "server": items["Service"]["metadata"]["name"]}
        assert all(
            e["port"] in {p["name"] for p in items["Service"]["spec"]["ports"]} for e in monitor["endpoints"]
        )


def restricted(pod: dict[str, Any], gpus: int) -> None:
    """The Pod Security Standard "restricted" (kubernetes.io, pod-security-standards)."""
    (container,) = pod["containers"]
    inside = container["securityContext"]
    assert inside["allowPrivilegeEscalation"] is False and inside["capabilities"]["drop"] == ["ALL"]
    assert inside["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    mounted = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert set(mounted) == {v["name"] for v in pod["volumes"]}
    (shared,) = [v for v in pod["volumes"] if mounted[v["name"]] == "/dev/shm"]
    assert shared["emptyDir"]["medium"] == "Memory"
    resources = container["resources"]
    assert int(resources["limits"].get("nvidia.com/gpu", 0)) == gpus
    assert resources["limits"] == resources["requests"]
    assert int(resources["requests"]["cpu"]) > gpus


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def times_agree(pod: dict[str, Any]) -> None:
    """What the server is told and what Kubernetes waits for are the same times."""
    (container,) = pod["containers"]
    drain = container.get("lifecycle", {"preStop": {"sleep": {"seconds": 0}}})["preStop"]["sleep"]["seconds"]
    startup = container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"]
    if "args" in container:
        # enginix serve kills after 10 s more, and tidies up.
        finish = int(option(container["args"], "--exit-timeout"))
        assert pod["terminationGracePeriodSeconds"] >= drain + finish + 20
        assert 0 <= startup - int(option(container["args"], "--start-timeout")) < 5
    else:
        assert pod["terminationGracePeriodSeconds"] > drain


def group(items: dict[str, Any], gpus: int, nodes: int) -> dict[str, Any]:
    """A server over several nodes; returns the leader's template."""
    assert "Deployment" not in items
    workers = items["LeaderWorkerSet"]
    assert workers["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    # Its controller makes a headless Service of its name.
    name = workers["metadata"]["name"]
    assert name != items["Service"]["metadata"]["name"]
    spec, of = workers["spec"], workers["spec"]["leaderWorkerTemplate"]
    assert set(spec) == {"replicas", "startupPolicy", "rolloutStrategy", "leaderWorkerTemplate"}
    assert set(of) == {"size", "restartPolicy", "leaderTemplate", "workerTemplate"}
    assert (of["size"], of["restartPolicy"]) == (nodes, "RecreateGroupOnPodRestart")
    rollout = spec["rolloutStrategy"]["rollingUpdateConfiguration"]
    assert rollout["maxUnavailable"] + rollout["maxSurge"] > 0
    leader, worker = of["leaderTemplate"], of["workerTemplate"]
    for template in (leader, worker):
        restricted(template["spec"], gpus)
        budget = items["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
        assert budget.items() <= template["metadata"]["labels"].items()
        valid({"apiVersion": "v1", "kind": "Pod", **template})
        # OpenMPI refuses a user that the password file does not name.
        (container,) = template["spec"]["containers"]
        (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == "/etc/passwd"]
        users = items["ConfigMap"]["data"][mount["subPath"]].splitlines()
        assert str(template["spec"]["securityContext"]["runAsUser"]) in {u.split(":")[2] for u in users}
        assert all(len(u.split(":")) == 7 for u in users)
    # Only the leader answers, and only it may do something in the cluster.
    selector = items["Service"]["spec"]["selector"]
    assert not selector.items() <= worker["metadata"]["labels"].items()
    assert worker["spec"]["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in worker["spec"]
    account = items["ServiceAccount"]["metadata"]["name"]
    assert leader["spec"]["serviceAccountName"] == account
    assert [s["name"] for s in items["RoleBinding"]["subjects"]] == [account]
    assert items["RoleBinding"]["roleRef"]["name"] == items["Role"]["metadata"]["name"]
    # The names of all Pods but the leaders', one group more than replicas for a rollout.
    groups = range(spec["replicas"] + rollout["maxSurge"])
    pods = {f"{name}-{g}-{i}" for g in groups for i in range(1, nodes)}
    allowed = {(tuple(r["resources"]), tuple(r["verbs"])) for r in items["Role"]["rules"]}
    assert allowed == {(("pods",), ("get",)), (("pods/exec",), ("create", "get"))}
    assert all(set(r["resourceNames"]) == pods for r in items["Role"]["rules"])
    assert all(len(pod) <= 63 for pod in pods)
    # What the arguments say is what enginix serve reads: as many hosts as Pods, as many slots as GPUs.
    (container,) = leader["spec"]["containers"]
    words = container["args"]
    (own,) = [e for e in container["env"] if e["name"] == "POD_NAME"]
    assert own["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    for number in groups:
        hosts = option(words, "--hosts").replace("$(POD_NAME)", f"{name}-{number}").split(",")
        assert hosts[0] == f"{name}-{number}:{gpus}"
        assert {h.split(":")[0] for h in hosts[1:]} == {p for p in pods if p.startswith(f"{name}-{number}-")}
        assert all(re.fullmatch(rf"[a-z0-9-]+:{gpus}", h) for h in hosts)
    assert option(words, "--agent") == "kubectl"
    times_agree(leader["spec"])
    # A worker ends after the leader has ended its ranks.
    assert worker["spec"]["terminationGracePeriodSeconds"] >= leader["spec"]["terminationGracePeriodSeconds"]
    assert "lifecycle" not in worker["spec"]["containers"][0]
    (container,) = worker["spec"]["containers"]
    assert option(container["args"], "--worker") == str(gpus)
    assert "ports" not in container and "livenessProbe" not in container
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["exec"]["command"] == [
            "test",
            "-e",
            option(container["args"], "--ready-file"),
        ]
    return leader


if __name__ == "__main__":
    counts = [word.removeprefix("nodes=") for word in sys.argv if word.startswith("nodes=")]
    main(Path(sys.argv[1]), int(sys.argv[2]), int((counts or ["1"])[0]))
