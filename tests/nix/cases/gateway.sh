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

test_gateway_answers_a_chat() {
  local key='sk-of-the-nix-test-0123456789' ports http gateway_port triton gateway path status=1
  ports=$(python3 -c 'import socket
s = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(x.getsockname()[1] for x in s))')
  read -r http gateway_port _ <<<"$ports"
  with_lib build "
    let server = e.mkTritonServer { repo = e.catalogue.tiny-qwen3.triton-repo; httpPort = $http; grpcPort = 0; metricsPort = 0; };
    in e.mkGateway { servers.tiny = server; httpPort = $gateway_port; keyFile = \"operator\"; routing.aliases.small = \"tiny\"; }" --out-link "$tmp/gateway" || return 1
  with_lib build "
    e.mkTritonServer { repo = e.catalogue.tiny-qwen3.triton-repo; httpPort = $http; grpcPort = 0; metricsPort = 0; }" --out-link "$tmp/behind" || return 1
  mkdir -p "$tmp/credentials"
  (umask 077 && echo "$key" >"$tmp/credentials/operator")
  "$tmp/behind/bin/tiny-qwen3-triton-server" >"$tmp/behind.log" 2>&1 &
  triton=$!
  CREDENTIALS_DIRECTORY=$tmp/credentials "$tmp/gateway/bin/gateway" --start-timeout 100 >"$tmp/gateway.log" 2>&1 &
  gateway=$!
  for _ in $(seq 1200); do
    grep -q 'answers at http' "$tmp/gateway.log" && break
    kill -0 "$gateway" 2>/dev/null || break
    sleep 0.1
  done
  quietly curl -sS -m 60 "http://127.0.0.1:$gateway_port/v1/chat/completions" -H "Authorization: Bearer $key" \
    -H 'Content-Type: application/json' \
    -d '{"model": "small", "max_tokens": 4, "ignore_eos": true, "messages": [{"role": "user", "content": "Once"}]}' &&
    says '"finish_reason":"length"' && says '"completion_tokens":4' && status=0
  # The key is in no command line, environment, log or path of the store.
  if tr '\0' ' ' <"/proc/$gateway/cmdline" | cat - "/proc/$gateway/environ" "$tmp/gateway.log" | grep -qF "$key"; then
    echo '    the key is seen'
    status=1
  fi
  path=$(readlink -f "$tmp/gateway")
  # shellcheck disable=SC2046
  ! grep -rqF "$key" "$path" $(nix-store -q --references "$path" | grep -F gateway.json) || status=1
  kill "$gateway" "$triton"
  wait "$gateway" || status=1
  wait "$triton" || status=1
  [ "$status" = 0 ] || cat "$tmp/gateway.log" "$tmp/behind.log" >>"$out"
  return "$status"
}
