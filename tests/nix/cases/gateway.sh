# shellcheck shell=bash disable=SC2154,SC2016
# mkGateway: what evaluation refuses, and a chat through the whole chain.

gateway_refused() { # arguments, what must be said
  ! with_lib eval "(e.mkGateway { $1 }).drvPath" && says "$2"
}

test_gateway_refuses_at_evaluation() {
  local servers='servers.a = { kind = "triton"; url = "http://127.0.0.1:1"; model = "ensemble"; };'
  gateway_refused 'servers = { };' 'servers is empty' &&
    gateway_refused "$servers limit = { };" 'Did you mean limits?' &&
    gateway_refused "$servers limits.maxParalelRequests = 1;" 'Did you mean maxParallelRequests?' &&
    gateway_refused "$servers limits.defaultMaxTokens = 0;" 'at least 1' &&
    gateway_refused "$servers host = \"0.0.0.0\";" 'there is no key' &&
    gateway_refused "$servers keyFile = $root/README.md;" 'in the store' &&
    gateway_refused "$servers metricsKeyFile = \"m\";" 'no key lets requests in' &&
    gateway_refused "$servers clients.b = { };" 'clients.b.keyFile' &&
    gateway_refused "$servers clients.b = { keyFile = \"b\"; models = [ \"x\" ]; };" 'unknown value "x"' &&
    gateway_refused "$servers routing.aliases.b = \"c\";" 'unknown value "c"' &&
    gateway_refused "$servers routing.strategy = \"random\";" 'unknown value "random"' &&
    gateway_refused 'servers.a = { kind = "vllm"; url = "http://x"; model = "m"; };' 'unknown value "vllm"' &&
    gateway_refused 'servers.a = { kind = "openai"; url = "x:1"; model = "m"; };' 'http://host:port' &&
    gateway_refused 'servers.a = e.mkTritonServer { repo = e.catalogue.tiny-qwen3.triton-repo; httpPort = 0; };' 'give it one'
}

test_gateway_finds_servers_of_mkserve() {
  local server='{ outPath = "x"; kind = "edgellm"; host = "0.0.0.0"; httpPort = 8100; servedModelName = "m"; }'
  with_lib build "e.mkGateway { servers.big = [ $server { server = $server; keyFile = \"k\"; } ]; name = \"gateway-$EPOCHREALTIME\"; }" --out-link "$tmp/serves" || return 1
  cp "$tmp/serves/share/gateway.json" "$out"
  says '"api_base": "http://127.0.0.1:8100/v1"' && says '"model": "openai/m"' && says '"api_key": "os.environ/ENGINIX_KEY_6B"' && says '"id": "big#1"'
}

test_openai_of_a_server_names_what_replaces_it() {
  ! with_lib eval '(e.mkTritonServer { repo = e.catalogue.tiny-qwen3.triton-repo; openai.enable = true; }).drvPath' &&
    says 'mkTritonServer: openai was removed; put mkGateway before the server'
}

# A gateway before a Triton server, and the key of its operator.
gateway_key='sk-of-the-nix-test-0123456789'
gateway_with_a_key() { # ports of the server and of the gateway, more servers over engine_of
  on_a_gpu_host build "$(engine_of "
    let server = e.mkTritonServer { repo = e.catalogue.tiny-qwen3.triton-repo; httpPort = $1; grpcPort = 0; metricsPort = 0; };
    in e.mkGateway { servers = { tiny = server; ${3-} }; httpPort = $2; keyFile = \"operator\"; routing.aliases.small = \"tiny\"; }")" --out-link "$tmp/gateway" || return 1
  mkdir -p "$tmp/credentials"
  (umask 077 && echo "$gateway_key" >"$tmp/credentials/operator")
}

# The key is in no path of the store.
gateway_key_is_in_no_store_path() {
  local path
  path=$(readlink -f "$tmp/gateway")
  # shellcheck disable=SC2046
  ! grep -rqF "$gateway_key" "$path" $(nix-store -q --references "$path" | grep -F gateway.json)
}

# All that is looked at before LiteLLM starts; its import alone takes 8 s.
test_gateway_has_its_key_and_its_litellm() {
  local ports
  read -r -a ports < <(whole_ports 2)
  gateway_with_a_key "${ports[@]}" || return 1
  CREDENTIALS_DIRECTORY=$tmp/credentials quietly "$tmp/gateway/bin/gateway" --check && says 'description, keys, litellm' &&
    ! grep -qF "$gateway_key" "$out" && gateway_key_is_in_no_store_path || return 1
  mkdir -p "$tmp/no-credentials"
  ! CREDENTIALS_DIRECTORY=$tmp/no-credentials quietly "$tmp/gateway/bin/gateway" --check && says operator
}

# Before a Triton server and, on the stand-in image, trtllm-serve.
test_gateway_answers_a_chat() {
  slow || return
  local key=$gateway_key http gateway_port serve_port triton served gateway status=1
  read -r http gateway_port serve_port < <(whole_ports 3)
  local serve="e.mkServe { engine = mk { name = \"tiny\"; kind = \"llmapi\"; }; port = $serve_port; }"
  gateway_with_a_key "$http" "$gateway_port" "served = $serve;" &&
    on_a_gpu_host build "$(engine_of "$serve")" --out-link "$tmp/served" || return 1
  with_lib build "
    e.mkTritonServer { repo = e.catalogue.tiny-qwen3.triton-repo; httpPort = $http; grpcPort = 0; metricsPort = 0; }" --out-link "$tmp/behind" || return 1
  "$tmp/behind/bin/tiny-qwen3-triton-server" >"$tmp/behind.log" 2>&1 &
  triton=$!
  "$tmp/served/bin/tiny-serve" >"$tmp/served.log" 2>&1 &
  served=$!
  CREDENTIALS_DIRECTORY=$tmp/credentials "$tmp/gateway/bin/gateway" --start-timeout 100 >"$tmp/gateway.log" 2>&1 &
  gateway=$!
  for _ in $(seq 1200); do
    grep -q 'answers at http' "$tmp/gateway.log" && break
    kill -0 "$gateway" 2>/dev/null || break
    sleep 0.1
  done
  chat() { # body
    quietly curl -sS -m 60 "http://127.0.0.1:$gateway_port/v1/chat/completions" -H "Authorization: Bearer $key" \
      -H 'Content-Type: application/json' -d "$1"
  }
  chat '{"model": "small", "max_tokens": 4, "ignore_eos": true, "messages": [{"role": "user", "content": "Once"}]}' &&
    says '"finish_reason":"length"' && says '"completion_tokens":4' &&
    chat '{"model": "served", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}' && says 'stand-in: hello' && status=0
  # Nor is the key in a command line, an environment or a log.
  if tr '\0' ' ' <"/proc/$gateway/cmdline" | cat - "/proc/$gateway/environ" "$tmp/gateway.log" | grep -qF "$key"; then
    echo '    the key is seen'
    status=1
  fi
  gateway_key_is_in_no_store_path || status=1
  kill "$gateway" "$triton" "$served"
  wait "$gateway" || status=1
  wait "$triton" || status=1
  wait "$served"
  [ "$status" = 0 ] || cat "$tmp/gateway.log" "$tmp/behind.log" "$tmp/served.log" >>"$out"
  return "$status"
}
