# { image; reference; … } -> { pod; container; timeoutWords; }
#
# The Pod of a server, and its container. What times mean is said once, here: the container's
# arguments, its probes, and the seconds that Kubernetes waits all come from the same two.
{
  lib,
  image,
  reference,
  # Of the selectors, and all of the Pod's.
  labels,
  podLabels,
  annotations,
  podGpus,
  cpu,
  memory,
  sharedMemory,
  startTimeout,
  exitTimeout,
  drainDelay,
  nodeSelector,
  topologyKey,
  runtimeClassName,
  imagePullSecrets,
  apiKeySecret,
}:
let
  hasOwnServer = !(image.server ? repo);
  get = path: {
    httpGet = {
      inherit path;
      port = "http";
    };
  };
  listens.tcpSocket.port = "http";
  # A Pod is started when a generation has succeeded; from then on the server's own health, which
  # costs no GPU, counts.
  generates.exec.command =
    image.probe
    ++ lib.optionals (apiKeySecret != null) [
      "--api-key-credential"
      "api-key"
    ];
  # Arguments beside the entry point's own; the later ones win.
  timeoutWords = [
    "--start-timeout"
    (toString startTimeout)
    "--exit-timeout"
    (toString exitTimeout)
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
  // lib.optionalAttrs (!hasOwnServer) { args = timeoutWords; }
  // lib.optionalAttrs (drainDelay > 0) {
    # Before SIGTERM, after which Triton takes no new connection (Kubernetes 1.30 and later).
    lifecycle.preStop.sleep.seconds = drainDelay;
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
    metadata = {
      labels = podLabels;
    }
    // lib.optionalAttrs (annotations != { }) { inherit annotations; };
    spec = {
      automountServiceAccountToken = false;
      enableServiceLinks = false;
      # It counts from the start of preStop: the drain, the server's own time, 20 s to tidy up.
      terminationGracePeriodSeconds = drainDelay + exitTimeout + 20;
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
    // lib.optionalAttrs (runtimeClassName != null) { inherit runtimeClassName; }
    // lib.optionalAttrs (imagePullSecrets != [ ]) {
      imagePullSecrets = map (name: { inherit name; }) imagePullSecrets;
    }
    // lib.optionalAttrs (topologyKey != null) {
      topologySpreadConstraints = [
        {
          maxSkew = 1;
          inherit topologyKey;
          whenUnsatisfiable = "ScheduleAnyway";
          labelSelector.matchLabels = labels;
        }
      ];
    }
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
in
{
  inherit pod container timeoutWords;
}
