"""Whether manifests of mkKubernetes hold together: kubernetes.py FILE GPUS [schemas]."""

import json
import sys
from pathlib import Path


def main(file: Path, gpus: int, schemas: bool) -> None:
    found = json.loads(file.read_text())
    assert found["kind"] == "List"
    items = {item["kind"]: item for item in found["items"]}
    if schemas:
        import kubernetes_validate

        for item in items.values():
            if item["kind"] != "ServiceMonitor":
                kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)
    deployment = items["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    labels = deployment["template"]["metadata"]["labels"]
    # Each that selects Pods selects these.
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
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
        assert all(
            e["port"] in {p["name"] for p in items["Service"]["spec"]["ports"]} for e in monitor["endpoints"]
        )
    # The Pod Security Standard "restricted" (kubernetes.io/docs/concepts/security/pod-security-standards).
    inside = container["securityContext"]
    assert inside["allowPrivilegeEscalation"] is False and inside["capabilities"]["drop"] == ["ALL"]
    assert inside["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    mounted = {m["name"] for m in container["volumeMounts"]}
    assert mounted == {v["name"] for v in pod["volumes"]}
    resources = container["resources"]
    assert int(resources["limits"].get("nvidia.com/gpu", 0)) == gpus
    assert resources["limits"] == resources["requests"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "schemas" in sys.argv)
