# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# The image of a server: its layout, its bytes, and that it answers. The package set's stand-in for dockerTools streams
# the store alone, so that this machine's /usr and /opt stand in for what nixpkgs' paths would bring.

image_of() { # arguments of mkOciImage beside the server, where the archive goes
  with_lib build "e.mkOciImage { server = e.catalogue.tiny-qwen3.triton-server; $1 }" --out-link "$tmp/stream" || return 1
  "$tmp/stream" >"$2" 2>"$out"
}

test_oci_image_is_what_it_says_and_answers() {
  slow || return
  image_of '' "$tmp/image.tar" && image_of '' "$tmp/again.tar" || return 1
  quietly cmp "$tmp/image.tar" "$tmp/again.tar" && quietly python3 tests/nix/image.py unpack "$tmp/image.tar" "$tmp/root" || return 1
  # What the configuration says is what is started, as its user, in its root.
  command -v bwrap >/dev/null || return 0
  local words
  mapfile -t words < <(python3 tests/nix/image.py words "$tmp/image.tar")
  quietly timeout 120 bwrap --unshare-all --uid 10001 --gid 10001 --die-with-parent --clearenv --setenv HOME /tmp --setenv PATH /usr/bin:/bin \
    --ro-bind "$tmp/root/nix" /nix --ro-bind /usr /usr --ro-bind /opt/enginix /opt/enginix --symlink usr/bin /bin --symlink usr/lib /lib \
    --symlink usr/lib64 /lib64 --proc /proc --dev /dev --perms 1777 --tmpfs /tmp --chdir /tmp \
    "${words[@]}" --http-port 0 --grpc-port 0 --metrics-port 0 --ask 'Once upon a time' --max-tokens 8 --exit-after-ask &&
    says 'tiny-qwen3 answers at' && says 'finish reason length'
}

test_oci_image_damaged_is_noticed() {
  image_of '' "$tmp/image.tar" || return 1
  python3 - "$tmp/image.tar" <<'PY'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(2_000_000)
    f.write(b"\xff" * 64)
PY
  refuses python3 tests/nix/image.py unpack "$tmp/image.tar" "$tmp/damaged"
}

refused_image() { # arguments of mkOciImage, words
  ! with_lib eval "(e.mkOciImage ({ server = e.catalogue.tiny-qwen3.triton-server; } // $1)).drvPath" && says "$2"
}

test_oci_image_refuses_at_evaluation() {
  local server='{ kind = "tensorrt"; runtime = "trtllm-1.2.1"; modelName = "m"; repo = "/x"; httpPort = 8000; grpcPort = 8001; metricsPort = 8002;
    engine.runtimePackage.image = "26.06"; meta = { description = "d"; mainProgram = "m"; }; outPath = "/x"; }'
  refused_image "{ server = $server; }" 'pass base = dockerTools.pullImage { imageName = "nvcr.io/nvidia/tritonserver"' &&
    refused_image "{ server = $server; base.imageName = \"debian\"; }" 'base is debian, but the engine was built for nvcr.io/nvidia/tritonserver' &&
    refused_image '{ base = "/x"; }' 'leave base out' && refused_image '{ user = 0; }' 'is root' &&
    refused_image '{ host = "127.0.0.1"; }' "container's own loopback" && refused_image '{ tga = "1"; }' 'unknown argument "tga"' &&
    refused_image '{ server = e.catalogue.tiny-qwen3.triton-server // { httpPort = 0; }; }' 'give it one'
}

# The manifests as JSON: structure by checks of ours, and by Kubernetes' own schemas where the package
# kubernetes-validate is at hand (ENGINIX_KUBERNETES names a Python that has it).
kubernetes() { # arguments of mkKubernetes, of the image
  with_lib eval "builtins.toJSON (e.mkKubernetes ({
      image = e.mkOciImage { server = e.catalogue.tiny-qwen3.triton-server; } // (${2-{ \}});
      reference = \"registry.example/enginix/tiny:1\";
    } // $1)).manifests" --raw && grep -a '^{' "$out" >"$tmp/manifests.json"
}

test_kubernetes_manifests_hold_together() {
  kubernetes '{ serviceMonitor = true; replicas = 2; }' && quietly python3 tests/nix/kubernetes.py "$tmp/manifests.json" 0 &&
    kubernetes '{ nodeSelector."nvidia.com/gpu.product" = "NVIDIA-H200"; }' \
      '{ server = { repo.device = "cuda"; engine = { }; }; }' &&
    quietly python3 tests/nix/kubernetes.py "$tmp/manifests.json" 1 &&
    kubernetes '{ apiKeySecret = "key"; }' '{ kind = "edgellm"; server.engine = { }; ports.http = 8000; }' &&
    quietly python3 tests/nix/kubernetes.py "$tmp/manifests.json" 1
}

test_kubernetes_manifests_by_their_schemas() {
  "${ENGINIX_KUBERNETES:-python3}" -c 'import kubernetes_validate' 2>/dev/null || {
    skip 'ENGINIX_KUBERNETES does not name a Python with kubernetes-validate'
    return 77
  }
  kubernetes '{ serviceMonitor = true; }' && quietly "$ENGINIX_KUBERNETES" tests/nix/kubernetes.py "$tmp/manifests.json" 0 schemas &&
    kubernetes '{ gpus = 1; }' && sed -i 's/"containerPort":8000/"containerPort":"8000"/' "$tmp/manifests.json" &&
    refuses "$ENGINIX_KUBERNETES" tests/nix/kubernetes.py "$tmp/manifests.json" 1 schemas
}

test_kubernetes_refuses_at_evaluation() {
  ! kubernetes '{ reference = "registry.example:5000/tiny"; }' && says 'neither tag nor digest' &&
    ! kubernetes '{ name = "Tiny"; }' && says 'no name of Kubernetes' && ! kubernetes '{ replicsa = 1; }' && says 'unknown argument "replicsa"' &&
    ! kubernetes '{ apiKeySecret = "k"; }' && says 'Triton asks for no key' &&
    ! kubernetes '{ gpus = 1; }' '{ kind = "tensorrt"; server = { repo = { }; engine.parallel = { tensorParallel = 2; }; }; }' && says 'the engine has 2 ranks' &&
    ! kubernetes '{ serviceMonitor = true; }' '{ kind = "edgellm"; server.engine = { }; ports.http = 8000; }' && says 'no metrics port'
}
