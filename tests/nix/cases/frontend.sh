# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# Triton's own OpenAI frontend on servers of kind tensorrt, on the stand-in image (tests/standin).
# on_a_gpu_host, built and engine_of are those of engines.sh.

# A server of kind tensorrt; its image, more arguments of mkTritonServer, and what to take of it.
frontend_of() {
  engine_of "(e.mkTritonServer ({ repo = e.mkTritonRepo { engine = one.ungated; }; } // { $2 }))${3-}" |
    sed "s|^  in |  one = mk { name = \"front\"; runtime = e.mkRuntime { id = \"trtllm-1.2.1\"; rootfs = standin.$1 \"trtllm-1.2.1\"; driver = standin.driver { }; }; }; in |"
}

# A server whose repository is not built: what evaluation alone says.
frontend_refused() { # arguments, what must be said
  ! with_lib eval "(e.mkTritonServer ({
      repo = { kind = \"tensorrt\"; modelName = \"m\"; engine = { }; runtime = \"trtllm-1.2.1\"; };
      runtime = { id = \"trtllm-1.2.1\"; row = { paths.triton = \"/t\"; images.x = { tritonServer = \"2.68.0\"; reference = \"nvcr.io/x\"; }; }; image = \"x\"; rootfs = \"/r\"; rootfsFor = _: \"/r\"; pinFile = \"\"; driver = null; };
    } // { $1 })).drvPath" && says "$2"
}

test_frontend_is_refused_at_evaluation() {
  local on='openai.enable = true;'
  frontend_refused "$on openai.flags.default-max-token = 2;" 'Did you mean default-max-tokens?' &&
    frontend_refused "$on openai.flags.max-tool-call-parse-bytes = 2;" 'unknown option' &&
    frontend_refused "$on openai.flags.default-max-tokens = 0;" 'whole number above 0' &&
    frontend_refused "$on openai.flags.tool-call-parser = \"qwen\";" 'llama3, mistral' &&
    frontend_refused "$on openai.flags.host = \"0.0.0.0\";" 'enginix writes it itself' &&
    frontend_refused "$on openai.flags.model-control-mode = \"explicit\";" 'enginix writes it itself' &&
    frontend_refused "$on openai.clients.a = { };" 'not for kind tensorrt' &&
    frontend_refused "$on openai.keyFile = $root/README.md;" 'readable by everyone' &&
    frontend_refused "$on host = \"0.0.0.0\";" 'mkGateway before it' &&
    frontend_refused "$on grpcPort = null;" 'HTTP and gRPC together' &&
    frontend_refused "$on flags.http-thread-count = 2;" 'openai.flags' &&
    frontend_refused "$on adminKeyFile = \"/k\";" 'restrict none' &&
    frontend_refused "$on repo = { kind = \"tensorrt\"; modelName = \"m\"; runtime = \"x\"; engine.parallel.tensorParallel = 2; };" 'one rank' &&
    frontend_refused "$on repo = { kind = \"llmapi\"; modelName = \"m\"; runtime = \"x\"; engine = { }; };" 'no batching' &&
    ! with_lib eval '(e.mkTritonServer { repo = e.catalogue.tiny-qwen3.triton-repo; openai = { enable = true; flags.x = 1; }; }).drvPath' &&
    says 'not for kind reference'
}

test_frontend_serves_inside_the_image() {
  local key='sk-of-the-frontend-0123456789' ports http grpc door pid result=0
  ports=$(python3 -c 'import socket
s = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(x.getsockname()[1] for x in s))')
  read -r http grpc door <<<"$ports"
  echo "$key" >"$tmp/frontend-key"
  built "$(frontend_of rootfsOpenai "httpPort = $http; grpcPort = $grpc; openai = { enable = true; httpPort = $door; keyFile = \"$tmp/frontend-key\"; flags.default-max-tokens = 64; };")" || return 1
  local server=$path/bin/front-triton-server
  quietly "$server" --dry-run && says "$door" && says '--default-max-tokens' && says 'Bearer $KEY' && says openai-frontend/openai_frontend/main.py || return 1
  "$server" >"$tmp/frontend" 2>&1 &
  pid=$!
  for _ in $(seq 1200); do
    grep -q 'answers at' "$tmp/frontend" && break
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  quietly curl -sS "http://127.0.0.1:$door/v1/chat/completions" -H "Authorization: Bearer $key" \
    -d '{"model": "ensemble", "messages": [{"role": "user", "content": "hello"}]}' && says 'stand-in: hello' || result=1
  quietly curl -sS "http://127.0.0.1:$door/v1/models" && says invalid_auth || result=1
  quietly curl -sS "http://127.0.0.1:$http/v2/models/ensemble/generate" -d '{"text_input":"hello"}' && says 'stand-in: hello' || result=1
  kill -TERM "$pid"
  wait "$pid" || result=1
  [ $result = 0 ] || cat "$tmp/frontend"
  return $result
}

# The module's unit under a real systemd, on the stand-in image's root. What enginix itself runs with here is this machine's,
# where nixpkgs' would be in the store: it is bound into that root besides. Without GPUs, which this machine does not have.
test_frontend_unit_under_systemd() {
  slow || return
  need_booted_systemd || return
  local place parts result=0
  place=$(mktemp -d /var/tmp/enginix-systemd.XXXXXX)
  parts="let
      pkgs = import $root/tests/hostpkgs { system = builtins.currentSystem; };
      e = import $root/nix { inherit pkgs; };
      standin = import $root/tests/standin { inherit pkgs; };
      driver = standin.driver { };
      runtime = e.mkRuntime { id = \"trtllm-1.2.1\"; inherit rootfs driver; };
      rootfs = pkgs.runCommand \"standin-rootfs-of-a-unit\" { base = standin.rootfsOpenai \"trtllm-1.2.1\"; inherit (e.enginix) python; } ''
        cp -r \$base \$out && chmod -R u+w \$out
        for file in /usr/bin/bash \$(ldd /usr/bin/bash \$python/lib/python3*/site-packages/{google/_upb,safetensors}/*.so | grep -oP '\s\K/\S+'); do
          [ -e \$out\$file ] && continue
          mkdir -p \$out\$(dirname \$file) && cp -Lf \$file \$out\$file
        done
      '';
      engine = (e.mkEngine {
        kind = \"tensorrt\"; inherit (e.catalogue.tiny-qwen3) model; inherit runtime; target = \"h200\"; gates = { };
      }).ungated;
      one = extraArgs: exitTimeout: {
        repo = e.mkTritonRepo { inherit engine; };
        openai = { enable = true; port = 9000; keyFile = \"/run/secrets/frontend\"; flags.default-max-tokens = 64; };
        startTimeout = 60;
        inherit exitTimeout;
        extraArgs = [ \"--driver\" \"\${driver}\" \"--python\" \"\${e.enginix.python}/bin/python3\" ] ++ extraArgs;
      };
    in"
  frontend_generation() { # extra arguments, seconds, directory
    ENGINIX_NIX_CONFIG=$features generation "name = \"front\"; settings = $parts one [ $1 ] $2;
      image = $parts import $root/nix/nixos/image.nix { inherit pkgs; } runtime;" "$place/$3" front
  }
  frontend_generation '' 20 units && frontend_generation '' 21 next &&
    frontend_generation '"--openai-frontend" "/nix/store"' 22 broken &&
    quietly "$nix" build --out-link "$tmp/enginix" .#enginix || return 1
  printf 'enginix=%s/bin/enginix\n' "$(readlink -f "$tmp/enginix")" >"$place/names"
  cp tests/nix/systemd/frontend.sh "$place/"
  quietly tests/nix/systemd/boot.sh "$place" "$place/frontend.sh" || result=1
  cat "$place/log" "$place/boot" >"$out" 2>&1
  rm -rf "$place"
  [ $result -eq 0 ] && says 'all as it should be'
}

test_frontend_is_refused_by_an_image_without_it() {
  ! on_a_gpu_host build "$(frontend_of rootfs 'openai.enable = true;')" --no-link -L && says 'main.py is missing' && says mkServe
}

test_frontend_says_where_it_is() {
  on_a_gpu_host eval "$(frontend_of rootfsOpenai 'openai = { enable = true; httpPort = 4321; };' .openai)" --json &&
    says '"httpPort":4321' && says '"host":"127.0.0.1"' && says '"model":"ensemble"'
}

test_frontend_behind_the_gateway() {
  on_a_gpu_host build "$(frontend_of rootfsOpenai 'openai = { enable = true; httpPort = 4321; };' | sed '$s|in \(.*\)$|in e.mkGateway { servers.a = { server = \1; keyFile = "/run/k"; }; }|')" --out-link "$tmp/front" || return 1
  quietly cat "$tmp/front/share/gateway.json" && says 'http://127.0.0.1:4321/v1' && says openai/ensemble
}

test_frontend_is_refused_in_a_container() {
  ! on_a_gpu_host eval "$(frontend_of rootfsOpenai 'openai.enable = true;' | sed '$s|in \(.*\)$|in (e.mkOciImage { server = \1; base = { imageName = "nvcr.io/nvidia/tritonserver"; }; }).drvPath|')" && says 'loopback alone'
}
