# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# The image of a server: its layout, its bytes, and that it answers. The package set's stand-in for dockerTools streams
# the store alone, so that this machine's /usr stands in for what nixpkgs' paths would bring.

image_of() { # arguments of mkOciImage, where the archive goes, scope of the functions
  with_lib build "(${3-e}).mkOciImage ({ server = e.catalogue.tiny-qwen3.triton-server; } // { $1 })" --out-link "$tmp/stream" || return 1
  "$tmp/stream" >"$2" 2>"$out"
}

# A command inside the unpacked image, with no network but its own.
contained() { # command
  quietly timeout 240 bwrap --unshare-all --uid 10001 --gid 10001 --die-with-parent --clearenv --setenv HOME /tmp --setenv PATH /usr/bin:/bin \
    --ro-bind "$tmp/root/nix" /nix --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib \
    --symlink usr/lib64 /lib64 --proc /proc --dev /dev --perms 1777 --tmpfs /tmp --chdir /tmp "$@"
}

test_oci_image_is_what_it_says_and_answers() {
  slow || return
  image_of '' "$tmp/image.tar" && quietly python3 tests/nix/image.py unpack "$tmp/image.tar" "$tmp/root" || return 1
  # What the configuration says is what is started, as its user, in its root.
  command -v bwrap >/dev/null || return 0
  local words probe
  mapfile -t words <"$tmp/root.words"
  mapfile -t probe <"$tmp/root.probe"
  # The health check has nothing but the image either: no server answers, then one does.
  contained "${probe[@]}" --timeout 1
  says 'no answer after 1 s' || return 1
  contained sh -c '"$@" >/tmp/log 2>&1 & server=$!; tries=6
    until '"$(printf '%q ' "${probe[@]}")"'; do tries=$((tries - 1)); [ $tries -gt 0 ] || { cat /tmp/log; exit 1; }; done
    echo the probe passes
    while kill -0 $server && ! grep -q "finish reason" /tmp/log; do sleep 0.1; done
    kill $server; wait $server; status=$?; cat /tmp/log; exit $status' \
    sh "${words[@]}" --grpc-port 0 --metrics-port 0 --ask 'Once upon a time' --max-tokens 8 &&
    says 'the probe passes' && says 'tiny-qwen3 answers at' && says 'finish reason length'
}

# A server of one file, and a probe without libraries, in the place of real ones, whose closure weighs a GB.
small_image() { # where the archive goes
  image_of 'server = e.catalogue.tiny-qwen3.triton-server // { outPath = "${nixpkgs.runCommand "server-of-one-file" { }
      "mkdir -p $out/bin; echo the words of the server >$out/bin/tiny-qwen3-triton-server"}"; };' "$1" 'e.override { core-python = e.python; }'
}

test_oci_image_is_the_same_twice_and_damage_is_noticed() {
  small_image "$tmp/small.tar" && small_image "$tmp/again.tar" && quietly cmp "$tmp/small.tar" "$tmp/again.tar" &&
    quietly python3 tests/nix/image.py unpack "$tmp/small.tar" "$tmp/small" &&
    sed 's/the words of the server/the sword of the server/' "$tmp/small.tar" >"$tmp/damaged.tar" &&
    ! cmp -s "$tmp/small.tar" "$tmp/damaged.tar" || return 1
  refuses python3 tests/nix/image.py unpack "$tmp/damaged.tar" "$tmp/damaged" && says "the layers' digests"
}

refused_image() { # arguments of mkOciImage, words
  ! with_lib eval "(e.mkOciImage ({ server = e.catalogue.tiny-qwen3.triton-server; } // $1)).drvPath" && says "$2"
}

test_oci_image_refuses_at_evaluation() {
  local server='{ kind = "tensorrt"; runtime = "trtllm-1.2.1"; modelName = "m"; repo = "/x"; httpPort = 8000; grpcPort = 8001; metricsPort = 8002; serveWords = [ ];
    engine.runtimePackage.image = "26.06"; meta = { description = "d"; mainProgram = "m"; }; outPath = "/x"; }'
  refused_image "{ server = $server; }" 'pass base = dockerTools.pullImage { imageName = "nvcr.io/nvidia/tritonserver"' &&
    refused_image "{ server = $server; base.imageName = \"debian\"; }" 'base is debian, but the engine was built for nvcr.io/nvidia/tritonserver' &&
    refused_image '{ base = "/x"; }' 'leave base out' && refused_image '{ user = 0; }' 'is root' &&
    refused_image '{ host = "127.0.0.1"; }' "container's own loopback" && refused_image '{ tga = "1"; }' 'unknown argument "tga"' &&
    refused_image '{ server = e.catalogue.tiny-qwen3.triton-server // { httpPort = 0; }; }' 'give it one'
}

# The manifests as JSON, and whether Kubernetes' own schemas and checks of ours take them.
valid_manifests() { # GPUs of a Pod, nodes=N
  "$(tests/hostpkgs/environments.sh dev)/bin/python" tests/nix/kubernetes.py "$tmp/manifests.json" "$@"
}
kubernetes() { # arguments of mkKubernetes, of the image
  with_lib eval "builtins.toJSON (e.mkKubernetes ({
      image = e.mkOciImage { server = e.catalogue.tiny-qwen3.triton-server; } // (${2-{ \}});
      reference = \"registry.example/enginix/tiny:1\";
    } // $1)).manifests" --raw && grep -a '^{' "$out" >"$tmp/manifests.json"
}

# What is true of the container, and of the Pod.
container_has() { # jq expressions
  local expression
  for expression; do
    quietly jq -e ".items[0].spec.template.spec.containers[0] | $expression" "$tmp/manifests.json" || return 1
  done
}
pod_has() { # jq expressions
  local expression
  for expression; do
    quietly jq -e ".items[0].spec.template.spec | $expression" "$tmp/manifests.json" || return 1
  done
}

test_kubernetes_manifests_hold_together() {
  kubernetes '{ serviceMonitor = true; replicas = 2; }' && quietly valid_manifests 0 &&
    # Every time from one place: the server's, or the arguments here, which reach it.
    kubernetes '{ exitTimeout = 300; startTimeout = 1800; drainDelay = 5; }' && quietly valid_manifests 0 &&
    container_has '.lifecycle.preStop.sleep.seconds == 5' '.args == ["--start-timeout", "1800", "--exit-timeout", "300"]' \
      '.startupProbe.failureThreshold == 360' && pod_has '.terminationGracePeriodSeconds == 325' &&
    kubernetes '{ }' '{ server = e.mkTritonServer { inherit (e.catalogue.tiny-qwen3.triton-server) repo; exitTimeout = 120; startTimeout = 900; }; }' &&
    quietly valid_manifests 0 && container_has '.args == ["--start-timeout", "900", "--exit-timeout", "120"]' '.startupProbe.failureThreshold == 180' &&
    pod_has '.terminationGracePeriodSeconds == 155' &&
    kubernetes '{ drainDelay = 0; }' && quietly valid_manifests 0 && container_has '(.lifecycle | not)' &&
    kubernetes '{ serviceMonitor = true; serviceMonitorLabels.release = "prometheus"; imagePullSecrets = [ "registry" ]; runtimeClassName = "nvidia";
        podLabels.team = "a"; podAnnotations.note = "b"; topologyKey = "topology.kubernetes.io/zone"; }' && quietly valid_manifests 0 &&
    pod_has '.imagePullSecrets == [{name: "registry"}]' '.runtimeClassName == "nvidia"' \
      '.topologySpreadConstraints[0].topologyKey == "topology.kubernetes.io/zone"' &&
    quietly jq -e '.items[] | select(.kind == "ServiceMonitor") | .metadata.labels.release == "prometheus"' "$tmp/manifests.json" &&
    quietly jq -e '.items[0].spec.template.metadata | .labels.team == "a" and .annotations.note == "b"' "$tmp/manifests.json" &&
    # The memory of weights that the plan counts, for each rank.
    kubernetes '{ }' '{ kind = "tensorrt"; server = { repo = { }; engine = { parallel.tensorParallel = 8; request.plan.weights = 17 * 1024 * 1024 * 1024; }; }; }' &&
    quietly valid_manifests 8 && container_has '.resources.requests.memory == "144Gi"' '.resources.requests.cpu == "18"' &&
    kubernetes '{ nodeSelector."nvidia.com/gpu.product" = "NVIDIA-H200"; }' \
      '{ server = { repo.device = "cuda"; engine = { }; }; }' &&
    quietly valid_manifests 1 &&
    kubernetes '{ apiKeySecret = "key"; }' '{ kind = "edgellm"; server.engine = { }; ports.http = 8000; }' &&
    quietly valid_manifests 1
}

# A server of sixteen ranks: what mkKubernetes reads of an image.
spread='{ kind = "tensorrt"; kubectl = "/k"; modelName = "m"; user = 10001; probe = [ "enginix" "ready" ];
    ports = { http = 8000; grpc = 8001; metrics = 8002; };
    server = { repo = { }; engine.parallel = { tensorParallel = 8; pipelineParallel = 2; }; }; }'
# The same, and its engine is one that mkEngine makes.
spread_of() { # arguments of mkCheckpoint
  echo "$spread // { server = { repo = { }; engine = e.mkEngine { kind = \"tensorrt\"; target = \"h200\";
    checkpoint = e.mkCheckpoint ({ inherit (e.catalogue.tiny-qwen3) model; } // $1); }; }; }"
}

test_kubernetes_several_nodes_hold_together() {
  kubernetes '{ nodes = 2; gpusPerNode = 8; replicas = 2; serviceMonitor = true; }' "$spread" &&
    quietly valid_manifests 8 nodes=2 &&
    kubernetes '{ nodes = 2; gpusPerNode = 4; }' "$(spread_of '{ tensorParallel = 8; gpusPerNode = 4; }')" &&
    quietly valid_manifests 4 nodes=2 &&
    kubernetes '{ nodes = 2; gpusPerNode = 8; }' "$(spread_of '{ tensorParallel = 8; pipelineParallel = 2; }')" &&
    quietly valid_manifests 8 nodes=2 &&
    kubernetes '{ nodes = 3; gpusPerNode = 8; name = "three"; }' "$spread // { server = { repo = { }; engine.parallel = { tensorParallel = 8; pipelineParallel = 3; }; }; }" &&
    quietly valid_manifests 8 nodes=3 &&
    # The checks notice what they look for.
    sed -i 's/"pods\/exec"/"pods"/' "$tmp/manifests.json" && refuses valid_manifests 8 nodes=3 &&
    # One node is a Deployment.
    kubernetes '{ nodes = 1; gpusPerNode = 16; }' "$(spread_of '{ tensorParallel = 8; pipelineParallel = 2; gpusPerNode = 16; }')" && quietly valid_manifests 16
}

test_kubernetes_several_nodes_of_an_image() {
  # kubectl is in the image, and its path where enginix serve looks for it.
  kubernetes '{ nodes = 2; gpusPerNode = 8; reference = "registry.example/enginix/m:1"; image = e.mkOciImage {
      server = { kind = "tensorrt"; runtime = "trtllm-1.2.1"; modelName = "m"; repo = "/x"; httpPort = 8000; grpcPort = 8001;
        metricsPort = null; serveWords = [ ]; engine = { runtimePackage.image = "26.06"; parallel = { tensorParallel = 8; pipelineParallel = 2; }; };
        meta = { description = "d"; mainProgram = "m"; }; outPath = "/x"; };
      base.imageName = "nvcr.io/nvidia/tritonserver"; kubectl = "/kubectl"; }; }' &&
    quietly valid_manifests 8 nodes=2 && grep -q -- '/enginix","ready"' "$tmp/manifests.json" &&
    # From mkCheckpoint on, by every function between.
    kubernetes '{ nodes = 2; gpusPerNode = 4; reference = "registry.example/enginix/m:1"; image = e.mkOciImage {
      server = e.mkTritonServer { repo = e.mkTritonRepo { engine = e.mkEngine { kind = "tensorrt"; target = "h200";
        checkpoint = e.mkCheckpoint { inherit (e.catalogue.tiny-qwen3) model; tensorParallel = 8; gpusPerNode = 4; }; }; }; };
      base.imageName = "nvcr.io/nvidia/tritonserver"; kubectl = "/kubectl"; }; }' &&
    quietly valid_manifests 4 nodes=2
}

test_kubernetes_several_nodes_refused_at_evaluation() {
  ! kubernetes '{ nodes = 2; }' "$spread" && says 'nodes = 2 needs gpusPerNode' &&
    ! kubernetes '{ nodes = 3; gpusPerNode = 8; }' "$spread" && says '3 nodes of 8 GPUs are 24, but the engine has 16 ranks' &&
    ! kubernetes '{ nodes = 4; gpusPerNode = 4; }' "$spread" && says 'the engine counts 8 GPUs a node' &&
    says 'an engine of mkCheckpoint { gpusPerNode = 4;' &&
    ! kubernetes '{ nodes = 2; gpusPerNode = 8; }' "$(spread_of '{ tensorParallel = 8; pipelineParallel = 2; gpusPerNode = 4; }')" && says 'the engine counts 4 GPUs a node' &&
    ! kubernetes '{ nodes = 2; gpusPerNode = 8; gpus = 8; }' "$spread" && says 'gpus and gpusPerNode both' &&
    ! kubernetes '{ nodes = 2; gpusPerNode = 8; }' "$spread // { kubectl = null; }" && says 'pass mkOciImage { kubectl' &&
    ! kubernetes '{ nodes = 2; gpusPerNode = 8; name = "a-name-of-more-than-forty-characters-is-too-long"; }' "$spread" && says 'up to 40' &&
    ! kubernetes '{ nodes = 2; gpusPerNode = 1; }' && says 'an engine of kind reference is served by one node' &&
    ! kubernetes '{ nodes = 0; }' && says 'nodes = 0' && ! kubernetes '{ gpusPerNode = 8; }' "$spread" && says 'the engine has 16 ranks' &&
    ! kubernetes '{ gpus = 16; }' "$spread" && says 'pass nodes = 2 and gpusPerNode = 8, or an engine of mkCheckpoint { gpusPerNode = 16;' &&
    refused_image '{ kubectl = "/k"; }' 'a server of kind reference is on one'
}

# Real servers are replaced under load, while their endpoints go late; without the drain requests are lost.
test_kubernetes_rollout_loses_nothing() {
  slow || return
  local python
  python=$(tests/hostpkgs/environments.sh dev)/bin/python
  kubernetes '{ drainDelay = 4; exitTimeout = 40; }' &&
    quietly env PYTHONPATH=python "$python" tests/nix/kubernetes_rollout.py "$tmp/manifests.json" &&
    says ' 0 lost in 2 replacements' && says 'lost without the drain' && says 'no answer'
}

# Fields that checks of ours do not look at, misspelt or of another type.
test_kubernetes_schemas_notice_what_is_wrong() {
  local change
  kubernetes '{ serviceMonitor = true; }' && cp "$tmp/manifests.json" "$tmp/one.json" && quietly valid_manifests 0 || return 1
  for change in 's/"progressDeadlineSeconds"/"progressDeadlineSecond"/' 's/"periodSeconds":10/"periodSeconds":"10"/' \
    's/"type":"ClusterIP"/"typ":"ClusterIP"/' 's/"maxUnavailable":1/"maxUnavailable":[1]/'; do
    sed "$change" "$tmp/one.json" >"$tmp/manifests.json" && ! cmp -s "$tmp/one.json" "$tmp/manifests.json" &&
      refuses valid_manifests 0 && says kubernetes_validate.utils.ValidationError || return 1
  done
  kubernetes '{ nodes = 2; gpusPerNode = 8; }' "$spread" && cp "$tmp/manifests.json" "$tmp/several.json" && quietly valid_manifests 8 nodes=2 || return 1
  for change in 's/"enableServiceLinks"/"enableServiceLink"/' 's/"terminationGracePeriodSeconds":65/"terminationGracePeriodSeconds":"65"/2' \
    's/"apiGroups":\[""\]/"apiGroups":""/' 's/"roleRef":{/"roleRef":{"namespace":"x",/'; do
    sed "$change" "$tmp/several.json" >"$tmp/manifests.json" && ! cmp -s "$tmp/several.json" "$tmp/manifests.json" &&
      refuses valid_manifests 8 nodes=2 && says kubernetes_validate.utils.ValidationError || return 1
  done
}

test_kubernetes_refuses_at_evaluation() {
  ! kubernetes '{ reference = "registry.example:5000/tiny"; }' && says 'neither tag nor digest' &&
    ! kubernetes '{ name = "Tiny"; }' && says 'not a valid Kubernetes name' && ! kubernetes '{ replicsa = 1; }' && says 'unknown argument "replicsa"' &&
    ! kubernetes '{ apiKeySecret = "k"; }' && says 'Triton asks for no key' &&
    ! kubernetes '{ gpus = 1; }' '{ kind = "tensorrt"; server = { repo = { }; engine.parallel = { tensorParallel = 2; }; }; }' && says 'the engine has 2 ranks' &&
    ! kubernetes '{ drainDelay = -1; }' && says 'drainDelay = -1' && ! kubernetes '{ replicas = -1; }' && says 'replicas = -1' &&
    ! kubernetes '{ serviceMonitorLabels.a = "b"; }' && says 'serviceMonitor is off' &&
    ! kubernetes '{ serviceMonitor = true; }' '{ kind = "edgellm"; server.engine = { }; ports.http = 8000; }' && says 'no metrics port'
}
