# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# The parts together, on the stand-in image: a model, its gated engine, and what serves it, as real processes.
# built, on_a_gpu_host, engine_of and gated_engine_of are those of engines.sh, with_edge and need_edgellm of edgellm.sh.

whole_ports() { # count → free ports
  python3 -c 'import socket, sys
s = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(x.getsockname()[1] for x in s))' "$1"
}

# Runs it beside until its log says so; its process is $whole_pid then.
whole_starts() { # log, line, command
  local log=$1 line=$2
  shift 2
  "$@" >"$log" 2>&1 &
  whole_pid=$!
  for _ in $(seq 1800); do
    grep -qF -- "$line" "$log" && return
    kill -0 "$whole_pid" 2>/dev/null || break
    sleep 0.1
  done
  kill "$whole_pid" 2>/dev/null
  cp "$log" "$out"
  return 1
}

whole_stops() { # log, process: by SIGTERM, with status 0
  kill -TERM "$2" && wait "$2" && return
  cp "$1" "$out"
  return 1
}

# A Triton server: readiness, one answer, a clean stop.
whole_triton() { # program, model, what it is asked, what it says
  local http log=$tmp/whole-triton status=0
  http=$(whole_ports 1)
  whole_starts "$log" 'answers at' "$1" --http-port "$http" --grpc-port 0 --metrics-port 0 || return 1
  quietly curl -sf "http://127.0.0.1:$http/v2/models/$2/generate" -d "$3" && says "$4" || status=1
  whole_stops "$log" "$whole_pid" && ! grep -q 'not gated' "$log" && return $status
}

# A chat of who listens on the port.
whole_asks() { # port
  quietly curl -sS -m 120 "http://127.0.0.1:$1/v1/chat/completions" -H 'Content-Type: application/json' \
    -d '{"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}' && says 'stand-in: hello'
}

# mkServe's server on its port, which is asked a chat. The gateway before it names it; gateway_answers_a_chat starts such a
# gateway, whose LiteLLM takes 8 s to be imported.
whole_chat() { # directory of whole_of, port of mkServe
  local server log=$tmp/whole-serve status=0
  whole_starts "$log" 'stand-in trtllm-serve on' "$1/serve" || return 1
  server=$whole_pid
  whole_asks "$2" || status=1
  kill -TERM "$server"
  wait "$server"
  ! grep -q 'not gated' "$log" && quietly grep -F "127.0.0.1:$2/v1" "$(dirname "$(readlink -f "$1/gateway")")/../share/gateway.json" &&
    return $status
}

# What is made of a gated engine: a Triton server, mkServe's, a gateway before it. The engine of kind tensorrt is the one of
# engine_gated_by_what_it_says, built once.
whole_of() { # attributes of mkEngine, port of mkServe, more links
  gated_engine_of "let
      gated = mk { name = \"gated\"; $1 };
      repo = e.mkTritonRepo { engine = gated; };
      serve = e.mkServe { engine = gated; port = $2; };
      program = d: \"\${d}/bin/\${d.meta.mainProgram}\";
      links = {
        inherit gated;
        triton = program (e.mkTritonServer { inherit repo; });
        serve = program serve;
        gateway = program (e.mkGateway { servers.tiny = serve; });
      } // { ${3-} };
    in nixpkgs.runCommand \"whole\" (fresh { }) (builtins.concatStringsSep \"\n\" ([ \"mkdir \$out\" ]
      ++ builtins.attrValues (builtins.mapAttrs (name: to: \"ln -s \${to} \$out/\${name}\") links)))"
}

test_whole_tensorrt() {
  slow || return
  local http
  http=$(whole_ports 1)
  # One server computes other tokens than the engine that was gated, one is told other golden tokens.
  built "$(whole_of 'plugins.gatherContextLogits = true;' "$http" '
        broken = program (e.mkTritonServer { inherit repo; runtime = standin.answering e "trtllm-1.2.1" { misbehave = "loops"; }; });
        liar = program (e.mkTritonServer { repo = e.mkTritonRepo { engine = gated // {
          outPath = "${nixpkgs.runCommand "liar" { } "cp -r ${gated} $out; chmod u+w $out $out/enginix.json
            /usr/bin/python3 -c \"import json, sys; from pathlib import Path; p = Path(sys.argv[1]); m = json.loads(p.read_text()); m[str(\\\"results\\\")][str(\\\"golden\\\")][str(\\\"tokens\\\")][-1] += 1; p.write_text(json.dumps(m))\" $out/enginix.json"}";
        }; }; });')" || return 1
  local whole=$path server
  grep -q '"golden"' "$whole/gated/enginix.json" &&
    whole_triton "$whole/triton" ensemble '{"text_input": "hello"}' 'stand-in: hello' || return 1
  for server in broken liar; do
    refuses timeout 60 "$whole/$server" --http-port 0 --grpc-port 0 --metrics-port 0 &&
      says 'the golden prefix continues with' || return 1
  done
  whole_chat "$whole" "$http"
}

# Its Triton model takes texts: readiness is one answer, whatever the golden tokens.
test_whole_llmapi() {
  slow || return
  local http
  http=$(whole_ports 1)
  built "$(whole_of 'kind = "llmapi";' "$http")" || return 1
  local whole=$path
  whole_triton "$whole/triton" tensorrt_llm '{"text_input": "hello", "sampling_param_max_tokens": 4}' 'stand-in: hello' &&
    whole_chat "$whole" "$http"
}

# Two ranks by the image's mpirun; rank 0 answers. The runner has no gates, the matrix has them for each GPU.
test_whole_two_ranks() {
  slow || return
  built "$(gated_engine_of 'let
      gated = ('"$gated_matrix"' { smoke = { }; }).here;
      server = e.mkTritonServer { repo = e.mkTritonRepo { engine = gated; }; };
    in nixpkgs.runCommand "two" (fresh { }) "mkdir $out; ln -s ${gated} $out/gated; ln -s ${server}/bin/${server.meta.mainProgram} $out/triton"')" || return 1
  quietly "$path/triton" --dry-run && says mpirun && grep -q '"golden"' "$path/gated/enginix.json" &&
    whole_triton "$path/triton" ensemble '{"text_input": "hello"}' 'stand-in: hello'
}

test_whole_matrix_of_gated_engines() {
  slow || return
  built "$(gated_engine_of 'let of = '"$gated_matrix"' { smoke = { }; };
    in assert of.there.requiredSystemFeatures or null == null && of.there.ungated.requiredSystemFeatures == [ "cuda" "cuda-sm100" ];
      of.here')" && quietly cat "$path/enginix.json" && says '"smoke": "passed"'
}

# An engine that is built at first run, or has gates = { }, is not asked: its server says so.
test_whole_servers_of_ungated_engines_say_so() {
  local what http program
  for what in 'e.mkServe { engine = mk { name = "tiny"; gates = { }; }; }' 'e.mkServe { engine = mk { name = "tiny"; kind = "llmapi"; gates = { }; }; }' \
    'e.mkRunner { inherit model; name = "tiny"; runtime = runtime "trtllm-1.2.1"; }'; do
    built "$(engine_of "$what")" || return 1
    program=$(echo "$path"/bin/*)
    http=$(whole_ports 1)
    XDG_CACHE_HOME=$tmp/cache-whole whole_starts "$tmp/whole-ungated" 'stand-in trtllm-serve on' "$program" --port "$http" || return 1
    kill -TERM "$whole_pid"
    wait "$whole_pid"
    cp "$tmp/whole-ungated" "$out"
    says "note: not gated: the engine's answers were not compared with the model's" || return 1
  done
}

# Asked raw text: its stand-in computes answers from the model.
whole_edge() { # engine, what its server says or does not say at start
  local features='system-features = benchmark big-parallel kvm nixos-test cuda cuda-sm120' http status=0
  http=$(whole_ports 1)
  ENGINIX_NIX_CONFIG=$features with_edge build "standin.mkServe { engine = $1; }" -o "$tmp/edge" -L || return 1
  STATE_DIRECTORY=$tmp/edge-state whole_starts "$tmp/whole-edge" 'Application startup complete' "$tmp"/edge/bin/* --port "$http" || return 1
  quietly curl -sS -m 60 "http://127.0.0.1:$http/v1/chat/completions" -H 'Content-Type: application/json' \
    -d '{"messages": [{"role": "user", "content": "The"}], "apply_chat_template": false, "add_generation_prompt": false, "temperature": 0, "max_tokens": 4}' &&
    says '"finish_reason":"length"' || status=1
  kill -TERM "$whole_pid"
  wait "$whole_pid"
  [ "$status" = 0 ] || cat "$tmp/whole-edge" >>"$out"
  return "$status"
}

test_whole_edgellm() {
  slow || return
  need_edgellm || return
  # The engines of edgellm_engine_is_gated_by_what_its_server_says and edgellm_engine_is_built_in_both_isolations_….
  whole_edge 'gated { gates = null; name = "gated"; }' && ! grep -q 'not gated' "$tmp/whole-edge" || return 1
  whole_edge 'engine { }' && cp "$tmp/whole-edge" "$out" && says "note: not gated: the engine's answers were not compared"
}

# What `enginix up --print-nix` prints is an expression over this flake's functions.
test_up_prints_an_expression_that_evaluates() {
  local format
  for format in '' '--format fp8 --no-gates' '--kind tensorrt --target h200' \
    '--kind llmapi --target h200 --runtime trtllm-1.2.1'; do
    # shellcheck disable=SC2086 # words
    PYTHONPATH="$root/python" "$(tests/hostpkgs/environments.sh dev)/bin/python" -m enginix up "$root/tests/models/tiny-qwen3.lock.json" $format --print-nix >"$tmp/up.nix" || return 1
    cp "$root/tests/models/tiny-qwen3.lock.json" "$tmp/"
    with_lib eval "(import $tmp/up.nix e).drvPath" --raw && says '.drv' || return 1
  done
}

test_up_app_has_its_servers() {
  quietly "$nix" eval --raw "$root#apps.x86_64-linux.bench.program" && says '/bin/bench' && quietly "$nix" eval --raw "$root#apps.x86_64-linux.up.program" && says '/bin/up'
}

# What doctor tells a user of the flake to run, for each extra of the Python package.
test_packages_that_doctor_names() {
  local packages
  packages=$(PYTHONPATH=python "$(tests/hostpkgs/environments.sh dev)/bin/python" -c \
    'from enginix.optional_libraries import EXTRAS
for extra in EXTRAS.values():
    print(extra.package, *extra.commands)') || return 1
  local package command
  # The first as doctor says it; then the flake's packages without evaluating the flake for each command.
  quietly "$nix" run "path:$root#${packages%% *}" -- build --help && says 'usage: enginix build' || return 1
  with_lib build "let
      p = e // import (root + \"/nix/packages.nix\") e; # as packages and legacyPackages of the flake
      names = [ $(cut -d' ' -f1 <<<"$packages" | sort -u | sed 's/.*/"&"/' | tr "\n" " ") \"tritonserver\" ];
      link = name: \"ln -s \${p.\${name}} \$out/\${name}\";
    in nixpkgs.runCommand \"of-doctor\" { } (builtins.concatStringsSep \"\n\" ([ \"mkdir \$out\" ] ++ map link names))" --out-link "$tmp/of-doctor" || return 1
  while read -r package command; do
    for command in $command; do
      quietly "$tmp/of-doctor/$package/bin/enginix" "$command" --help && says "usage: enginix $command" || return 1
    done
  done <<<"$packages"
  [ -x "$tmp/of-doctor/tritonserver/bin/tritonserver" ]
}
