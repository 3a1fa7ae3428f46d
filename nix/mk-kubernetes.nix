# mkKubernetes :: { image, … } -> derivation
#
# Manifests of a server's image: one JSON file of a List, for `kubectl apply -f`. Deployment,
# Service, PodDisruptionBudget; with serviceMonitor the Prometheus operator's ServiceMonitor. An
# engine of several nodes has a LeaderWorkerSet in the Deployment's place (kubernetes-nodes.nix).
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
      # Requests and limits: "4", "16Gi".
      cpu ? "2",
      memory ? "8Gi",
      # Size of /dev/shm, which Triton's Python backend and NCCL use; Kubernetes gives 64 MiB.
      sharedMemory ? "1Gi",
      # Seconds until it must answer, and for running requests at the end.
      startTimeout ? 600,
      exitTimeout ? 30,
      # Nodes that it may run on: { "nvidia.com/gpu.product" = "NVIDIA-H200"; }
      nodeSelector ? { },
      # Scraped by the Prometheus operator.
      serviceMonitor ? false,
      # Name of a Secret; its `api-key` is the key that the engine's own server asks clients for.
      apiKeySecret ? null,
    }:
    let
      hasOwnServer = !(image.server ? repo);
      parallel = image.server.engine.parallel or { };
      ranks = (parallel.tensorParallel or 1) * (parallel.pipelineParallel or 1);
      # An engine that TensorRT-LLM made of a model itself has its default.
      engineGpusPerNode = parallel.gpusPerNode or defaults.gpusPerNode.value;
      onCpu = (import ./kinds).${image.kind}.isPortable && (image.server.repo.device or "cpu") == "cpu";
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
      labels = {
        "app.kubernetes.io/name" = name;
        "app.kubernetes.io/part-of" = "enginix";
      };
      meta = {
        inherit name namespace labels;
      };
      get = path: {
        httpGet = {
          inherit path;
          port = "http";
        };
      };
      listens.tcpSocket.port = "http";
      # A Pod is started when a generation has succeeded; from then on the server's own health,
      # which costs no GPU, counts.
      generates.exec.command =
        image.probe
        ++ lib.optionals (apiKeySecret != null) [
          "--api-key-credential"
          "api-key"
        ];
      container = {
        name = "server";
        image = reference;
        ports = lib.mapAttrsToList (portName: number: {
          name = portName;
          containerPort = number;
        }) image.ports;
        resources =
          let
            amount = {
              inherit cpu memory;
            }
            // lib.optionalAttrs (podGpus > 0) { "nvidia.com/gpu" = toString podGpus; };
          in
          {
            requests = amount;
            limits = amount;
          };
        startupProbe = generates // {
          periodSeconds = 5;
          timeoutSeconds = 30;
          failureThreshold = (startTimeout + 4) / 5;
        };
        readinessProbe = (if hasOwnServer then listens else get "/v2/health/ready") // {
          periodSeconds = 5;
          timeoutSeconds = 5;
        };
        livenessProbe = (if hasOwnServer then listens else get "/v2/health/live") // {
          periodSeconds = 10;
          timeoutSeconds = 5;
          failureThreshold = 6;
        };
        securityContext = {
          allowPrivilegeEscalation = false;
          readOnlyRootFilesystem = true;
          capabilities.drop = [ "ALL" ];
        };
        volumeMounts = [
          {
            name = "tmp";
            mountPath = "/tmp";
          }
          {
            name = "shm";
            mountPath = "/dev/shm";
          }
        ]
        ++ lib.optional (apiKeySecret != null) {
          name = "api-key";
          mountPath = "/run/credentials";
          readOnly = true;
        };
      }
      // lib.optionalAttrs (apiKeySecret != null) {
        env = [
          {
            name = "CREDENTIALS_DIRECTORY";
            value = "/run/credentials";
          }
        ];
      };
      pod = {
        metadata = { inherit labels; };
        spec = {
          automountServiceAccountToken = false;
          enableServiceLinks = false;
          # The server's own time, then 20 s to tidy up.
          terminationGracePeriodSeconds = exitTimeout + 20;
          securityContext = {
            runAsNonRoot = true;
            runAsUser = image.user;
            runAsGroup = image.user;
            fsGroup = image.user;
            seccompProfile.type = "RuntimeDefault";
          };
          containers = [ container ];
          volumes = [
            {
              name = "tmp";
              emptyDir = { };
            }
            {
              name = "shm";
              emptyDir = {
                medium = "Memory";
                sizeLimit = sharedMemory;
              };
            }
          ]
          ++ lib.optional (apiKeySecret != null) {
            name = "api-key";
            secret = {
              secretName = apiKeySecret;
              defaultMode = 288; # 0440
            };
          };
        }
        // lib.optionalAttrs (nodeSelector != { }) { inherit nodeSelector; }
        // lib.optionalAttrs (podGpus > 0) {
          tolerations = [
            {
              key = "nvidia.com/gpu";
              operator = "Exists";
              effect = "NoSchedule";
            }
          ];
        };
      };
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
        metadata = meta;
        spec = {
          inherit selector;
          endpoints = [ { port = "metrics"; } ];
        };
      };
      group = import ./kubernetes-nodes.nix {
        inherit
          lib
          meta
          labels
          pod
          container
          image
          replicas
          nodes
          startTimeout
          exitTimeout
          ;
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
        (atLeast "exitTimeout" 1 exitTimeout)
      ] true;
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
    else if serviceMonitor && hasOwnServer then
      throw "${function}: serviceMonitor is on, but the engine's own server has no metrics port."
    else if apiKeySecret != null && !hasOwnServer then
      throw "${function}: apiKeySecret is set, but Triton asks for no key; put a gateway before it."
    else
      pkgs.runCommand "${name}-kubernetes.json" {
        text = builtins.seq checked (builtins.toJSON list);
        passAsFile = [ "text" ];
        preferLocalBuild = true;
        passthru = {
          manifests = list;
          inherit image;
        };
      } "cp $textPath $out";
in
check.arguments.call function build
