# mkKubernetes :: { image, … } -> derivation
#
# Manifests of a server's image: one JSON file of a List, for `kubectl apply -f`. Deployment,
# Service, PodDisruptionBudget; with serviceMonitor the Prometheus operator's ServiceMonitor. An
# engine of several nodes has a LeaderWorkerSet in the Deployment's place (kubernetes-nodes.nix).
# The Pod is in kubernetes-pod.nix.
{
  lib,
  pkgs,
  check,
  ...
}:
let
  function = "mkKubernetes";
  inherit (lib.importJSON ../python/enginix/data/memory_plan/memory_constants.json) defaults;
  build =
    {
      # mkOciImage's output.
      image,
      # Name by which the cluster pulls the image; a digest pins it:
      # "registry.example/enginix/tiny@sha256:…".
      reference,
      name ? image.modelName,
      namespace ? "default",
      replicas ? 1,
      # Nodes that the ranks of one server are spread over, a Pod each, and the GPUs of each.
      nodes ? 1,
      gpusPerNode ? null,
      # GPUs of a Pod, as nvidia.com/gpu; by default the engine's ranks, none for the CPU reference.
      gpus ? null,
      # Requests and limits, as "4" and "16Gi"; by default two processors and two more a GPU, and
      # 8 GiB and the weights of the Pod's ranks, which a server reads through the host's memory.
      cpu ? null,
      memory ? null,
      # Size of /dev/shm, which Triton's Python backend and NCCL use; Kubernetes gives 64 MiB.
      sharedMemory ? "1Gi",
      # Seconds until it must answer, and for running requests at the end: the server's own, which
      # the container's arguments replace.
      startTimeout ? image.server.startTimeout or 600,
      exitTimeout ? image.server.exitTimeout or 30,
      # Seconds for which a Pod that is to end still takes requests: nodes send them until all have
      # heard that its endpoint is gone.
      drainDelay ? 15,
      # Nodes that it may run on: { "nvidia.com/gpu.product" = "NVIDIA-H200"; }
      nodeSelector ? { },
      # Label of nodes over which replicas are spread where possible; null leaves it to the cluster.
      topologyKey ? "kubernetes.io/hostname",
      # The RuntimeClass of Pods, such as "nvidia".
      runtimeClassName ? null,
      # Names of Secrets for the registry.
      imagePullSecrets ? [ ],
      # Further labels and annotations of Pods.
      podLabels ? { },
      podAnnotations ? { },
      # Scraped by the Prometheus operator.
      serviceMonitor ? false,
      # Labels by which the operator finds it: { release = "kube-prometheus-stack"; }.
      serviceMonitorLabels ? { },
      # Name of a Secret; its `api-key` is the key that the engine's own server asks clients for.
      apiKeySecret ? null,
    }:
    let
      hasOwnServer = !(image.server ? repo);
      parallel = image.server.engine.parallel or { };
      ranks = (parallel.tensorParallel or 1) * (parallel.pipelineParallel or 1);
      # An engine that TensorRT-LLM made of a model itself has its default.
      engineGpusPerNode = parallel.gpusPerNode or defaults.gpusPerNode.value;
      onCpu =
        (import ./kinds).${image.kind}.isPortable && (image.server.repo.device or "cpu") == "cpu";
      isMultiNode = nodes != 1;
      podGpus =
        if isMultiNode then
          gpusPerNode
        else if gpus != null then
          gpus
        else if gpusPerNode != null then
          gpusPerNode
        else if onCpu then
          0
        else
          ranks;
      # Ranks of a Pod; the memory plan counts for one.
      podRanks = if isMultiNode then gpusPerNode else ranks;
      engine = image.server.engine;
      plan = engine.plan or engine.request.plan or null;
      weights =
        if plan != null then
          plan.weights * podRanks
        else
          # The reference executor may hold each weight at twice its size in the model.
          (engine.model.weightBytes or 0) * (if onCpu then 2 else 1);
      gibibyte = 1024 * 1024 * 1024;
      resources = {
        cpu = if cpu != null then cpu else toString (2 + 2 * podGpus);
        memory =
          if memory != null then
            memory
          else
            "${toString (8 + (weights + gibibyte - 1) / gibibyte)}Gi";
      };
      labels = {
        "app.kubernetes.io/name" = name;
        "app.kubernetes.io/part-of" = "enginix";
      };
      meta = {
        inherit name namespace labels;
      };
      server = import ./kubernetes-pod.nix {
        inherit
          lib
          image
          reference
          labels
          podGpus
          sharedMemory
          startTimeout
          exitTimeout
          drainDelay
          nodeSelector
          runtimeClassName
          imagePullSecrets
          topologyKey
          apiKeySecret
          ;
        inherit (resources) cpu memory;
        # The selectors' labels win.
        podLabels = podLabels // labels;
        annotations = podAnnotations;
      };
      inherit (server) pod;
      selector.matchLabels = labels;
      deployment = {
        apiVersion = "apps/v1";
        kind = "Deployment";
        metadata = meta;
        spec = {
          inherit replicas selector;
          # The new Pod answers before an old one ends, if a GPU is free for it.
          strategy = {
            type = "RollingUpdate";
            rollingUpdate = {
              maxUnavailable = 0;
              maxSurge = 1;
            };
          };
          progressDeadlineSeconds = startTimeout + 300;
          template = pod;
        };
      };
      service = {
        apiVersion = "v1";
        kind = "Service";
        metadata = meta;
        spec = {
          type = "ClusterIP";
          selector = if isMultiNode then group.leader else labels;
          ports = lib.mapAttrsToList (portName: number: {
            name = portName;
            port = number;
            targetPort = portName;
          }) image.ports;
        };
      };
      budget = {
        apiVersion = "policy/v1";
        kind = "PodDisruptionBudget";
        metadata = meta;
        spec = {
          inherit selector;
          maxUnavailable = 1;
        };
      };
      monitor = {
        apiVersion = "monitoring.coreos.com/v1";
        kind = "ServiceMonitor";
        metadata = meta // {
          labels = serviceMonitorLabels // labels;
        };
        spec = {
          inherit selector;
          endpoints = [
            {
              port = "metrics";
              # The dashboard selects by these.
              relabelings = [
                {
                  targetLabel = "job";
                  replacement = "enginix";
                }
                {
                  targetLabel = "server";
                  replacement = name;
                }
              ];
            }
          ];
        };
      };
      group = import ./kubernetes-nodes.nix {
        inherit
          lib
          meta
          labels
          pod
          image
          replicas
          nodes
          startTimeout
          ;
        inherit (server) container timeoutWords;
        slots = gpusPerNode;
      };
      list = {
        apiVersion = "v1";
        kind = "List";
        items = (if isMultiNode then group.items else [ deployment ]) ++ [
          service
          budget
        ]
        ++ lib.optional serviceMonitor monitor;
      };
      atLeast = check.arguments.atLeast function;
      checked = builtins.deepSeq [
        (atLeast "replicas" 0 replicas)
        (atLeast "nodes" 1 nodes)
        (if gpusPerNode == null then 1 else atLeast "gpusPerNode" 1 gpusPerNode)
        (atLeast "startTimeout" 1 startTimeout)
        (atLeast "exitTimeout" 0 exitTimeout)
        (atLeast "drainDelay" 0 drainDelay)
      ] true;
      manifests = builtins.seq checked list;
    in
    if builtins.match "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?" name == null then
      throw (
        "${function}: name = ${name} is not a valid Kubernetes name (RFC 1123); use up to 63 of "
        + "a-z, 0-9 and -."
      )
    else if builtins.match ".+(:[^/]+|@sha256:[0-9a-f]{64})" reference == null then
      throw (
        "${function}: reference = ${reference} has neither tag nor digest, so its content can "
        + "change; add @sha256:…."
      )
    else if gpus != null && gpusPerNode != null then
      throw (
        "${function}: gpus and gpusPerNode both say what a Pod has; pass gpusPerNode with nodes, "
        + "gpus without."
      )
    else if isMultiNode && !(import ./kinds).${image.kind}.spansMachines then
      throw (
        "${function}: nodes = ${toString nodes}, but an engine of kind ${image.kind} is served by "
        + "one node; leave nodes out."
      )
    else if isMultiNode && gpusPerNode == null then
      throw "${function}: nodes = ${toString nodes} needs gpusPerNode."
    else if isMultiNode && nodes * gpusPerNode != ranks then
      throw (
        "${function}: ${toString nodes} nodes of ${toString gpusPerNode} GPUs are "
        + "${toString (nodes * gpusPerNode)}, but the engine has ${toString ranks} ranks; a GPU a "
        + "rank."
      )
    else if isMultiNode && gpusPerNode != engineGpusPerNode then
      throw (
        "${function}: gpusPerNode = ${toString gpusPerNode}, but the engine counts "
        + "${toString engineGpusPerNode} GPUs a node, by which TensorRT-LLM finds a rank's; use "
        + "nodes of ${toString engineGpusPerNode}, or an engine of mkCheckpoint { gpusPerNode = "
        + "${toString gpusPerNode}; … }."
      )
    else if isMultiNode && image.kubectl or null == null then
      throw (
        "${function}: the first node starts the ranks of the others by kubectl; pass "
        + "mkOciImage { kubectl = pkgs.kubectl; … }."
      )
    else if isMultiNode && builtins.stringLength name > 40 then
      throw (
        "${function}: name = ${name} is too long for Pods of several nodes; use up to 40 "
        + "characters."
      )
    else if !isMultiNode && podGpus < (if onCpu then 0 else ranks) then
      throw (
        "${function}: gpus = ${toString podGpus}, but the engine has ${toString ranks} ranks, and "
        + "a server of one node is one Pod; raise gpus, or pass nodes and gpusPerNode."
      )
    else if
      !isMultiNode && (import ./kinds).${image.kind}.spansMachines && ranks > engineGpusPerNode
    then
      throw (
        "${function}: the engine's ${toString ranks} ranks are for nodes of "
        + "${toString engineGpusPerNode} GPUs: on one, TensorRT-LLM would run several on a GPU; "
        + "pass nodes = ${toString (ranks / engineGpusPerNode)} and gpusPerNode = "
        + "${toString engineGpusPerNode}, or an engine of mkCheckpoint { gpusPerNode = "
        + "${toString ranks}; … }."
      )
    else if serviceMonitorLabels != { } && !serviceMonitor then
      throw "${function}: serviceMonitorLabels are set, but serviceMonitor is off; set it to true."
    else if serviceMonitor && hasOwnServer then
      throw "${function}: serviceMonitor is on, but the engine's own server has no metrics port."
    else if apiKeySecret != null && !hasOwnServer then
      throw "${function}: apiKeySecret is set, but Triton asks for no key; put a gateway before it."
    else
      pkgs.runCommand "${name}-kubernetes.json" {
        text = builtins.toJSON manifests;
        passAsFile = [ "text" ];
        preferLocalBuild = true;
        passthru = {
          inherit image manifests;
        };
      } "cp $textPath $out";
in
check.arguments.call function build
