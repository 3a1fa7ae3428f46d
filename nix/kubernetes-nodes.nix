# { image; pod; container; nodes; slots; … } -> { leader; items; }
#
# One server over several nodes: a LeaderWorkerSet (leaderworkerset.x-k8s.io/v1) of groups, a Pod a
# node. The first, the leader, is `enginix serve --hosts`: it starts the ranks of the others by
# `kubectl exec`, and answers. The others are `enginix serve --worker`. Its account may do nothing
# but that, in those Pods; their account may do nothing.
{
  lib,
  meta,
  labels,
  # Of a server of one node.
  pod,
  container,
  image,
  replicas,
  nodes,
  # Ranks, thus GPUs, of a node.
  slots,
  startTimeout,
  # The options of both times.
  timeoutWords,
}:
let
  component = "app.kubernetes.io/component";
  leader = labels // {
    ${component} = "leader";
  };
  # The controller makes a headless Service of the set's name, so that it is not the Service's.
  set = "${meta.name}-nodes";
  # A rollout adds a group before it ends one (maxSurge).
  workers = builtins.concatLists (
    builtins.genList (
      group:
      builtins.genList (index: "${set}-${toString group}-${toString (index + 1)}") (nodes - 1)
    ) (replicas + 1)
  );
  # `enginix serve --worker` makes it when its checks are done.
  ready = "/tmp/enginix-worker";
  waits.exec.command = [
    "test"
    "-e"
    ready
  ];
  # OpenMPI starts nothing elsewhere as a user whom the password file does not name.
  passwd = {
    apiVersion = "v1";
    kind = "ConfigMap";
    metadata = meta // {
      name = "${meta.name}-passwd";
    };
    data.passwd = ''
      root:x:0:0:root:/root:/bin/sh
      enginix:x:${toString image.user}:${toString image.user}:enginix:/tmp:/bin/sh
    '';
  };
  # The first node's name is its Pod's, the others' are that and their index.
  hosts = lib.concatStringsSep "," (
    builtins.genList (
      index: "$(POD_NAME)${lib.optionalString (index > 0) "-${toString index}"}:${toString slots}"
    ) nodes
  );
  common = container // {
    volumeMounts = container.volumeMounts ++ [
      {
        name = "passwd";
        mountPath = "/etc/passwd";
        subPath = "passwd";
        readOnly = true;
      }
    ];
  };
  template =
    podLabels: spec: container:
    pod
    // {
      metadata = {
        labels = pod.metadata.labels // podLabels;
        # Where something adds containers to Pods.
        annotations = {
          "kubectl.kubernetes.io/default-container" = "server";
        }
        // pod.metadata.annotations or { };
      };
      spec =
        # Of a group, no Pod may be kept away from another.
        builtins.removeAttrs pod.spec [ "topologySpreadConstraints" ]
        // {
          containers = [ container ];
          volumes = pod.spec.volumes ++ [
            {
              name = "passwd";
              configMap.name = passwd.metadata.name;
            }
          ];
        }
        // spec;
    };
  account = {
    apiVersion = "v1";
    kind = "ServiceAccount";
    metadata = meta;
    automountServiceAccountToken = false;
  };
  role = {
    apiVersion = "rbac.authorization.k8s.io/v1";
    kind = "Role";
    metadata = meta;
    rules = [
      {
        apiGroups = [ "" ];
        resources = [ "pods" ];
        resourceNames = workers;
        verbs = [ "get" ];
      }
      {
        apiGroups = [ "" ];
        resources = [ "pods/exec" ];
        resourceNames = workers;
        # kubectl asks by WebSocket first, with a GET (kubernetes/kubernetes#133515).
        verbs = [
          "create"
          "get"
        ];
      }
    ];
  };
  binding = {
    apiVersion = "rbac.authorization.k8s.io/v1";
    kind = "RoleBinding";
    metadata = meta;
    subjects = [
      {
        kind = "ServiceAccount";
        inherit (meta) name namespace;
      }
    ];
    roleRef = {
      apiGroup = "rbac.authorization.k8s.io";
      kind = "Role";
      inherit (meta) name;
    };
  };
  workerSet = {
    apiVersion = "leaderworkerset.x-k8s.io/v1";
    kind = "LeaderWorkerSet";
    metadata = meta // {
      name = set;
    };
    spec = {
      inherit replicas;
      startupPolicy = "LeaderCreated";
      rolloutStrategy = {
        type = "RollingUpdate";
        # The new group answers before an old one is ended, where there are GPUs for it.
        rollingUpdateConfiguration = {
          maxUnavailable = 0;
          maxSurge = 1;
        };
      };
      leaderWorkerTemplate = {
        size = nodes;
        # Ranks cannot go on without the others: when one Pod ends, all begin anew.
        restartPolicy = "RecreateGroupOnPodRestart";
        leaderTemplate =
          template leader
            {
              serviceAccountName = meta.name;
              automountServiceAccountToken = true;
            }
            (
              common
              // {
                # Beside the entry point's own.
                args = [
                  "--hosts"
                  hosts
                  "--agent"
                  "kubectl"
                ]
                ++ timeoutWords;
                env = (container.env or [ ]) ++ [
                  {
                    name = "POD_NAME";
                    valueFrom.fieldRef.fieldPath = "metadata.name";
                  }
                ];
              }
            );
        workerTemplate = template (labels // { ${component} = "worker"; }) { } (
          # It waits for its ranks, which end with the leader's.
          builtins.removeAttrs common [
            "ports"
            "livenessProbe"
            "lifecycle"
          ]
          // {
            args = [
              "--worker"
              (toString slots)
              "--ready-file"
              ready
            ];
            startupProbe = waits // {
              periodSeconds = 5;
              failureThreshold = (startTimeout + 4) / 5;
            };
            readinessProbe = waits // {
              periodSeconds = 5;
            };
          }
        );
      };
    };
  };
in
{
  inherit leader;
  items = [
    passwd
    account
    role
    binding
    workerSet
  ];
}
