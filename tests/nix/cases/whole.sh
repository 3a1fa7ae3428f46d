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
  for _ in $(seq 900); do
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

# mkServe's server on its port, and the gateway before it, which is asked a chat.
whole_chat() { # server, gateway, port of the gateway
  local server gateway log=$tmp/whole-serve status=0
  whole_starts "$log" 'stand-in trtllm-serve on' "$1" || return 1
  server=$whole_pid
  if whole_starts "$tmp/whole-gateway" 'answers at http' "$2" --start-timeout 60; then
    gateway=$whole_pid
    quietly curl -sS -m 30 "http://127.0.0.1:$3/v1/chat/completions" -H 'Content-Type: application/json' \
      -d '{"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}' &&
      says 'stand-in: hello' || status=1
    whole_stops "$tmp/whole-gateway" "$gateway" || status=1
  else
    status=1
  fi
  kill -TERM "$server"
  wait "$server"
  ! grep -q 'not gated' "$log" && return $status
}

# What is made of a gated engine: a Triton server, mkServe's, a gateway before it.
whole_of() { # attributes of mkEngine, port of mkServe, port of the gateway, more links
  gated_engine_of "let
      gated = mk { $1 };
      repo = e.mkTritonRepo { engine = gated; };
      serve = e.mkServe { engine = gated; port = $2; };
      program = d: \"\${d}/bin/\${d.meta.mainProgram}\";
      links = {
        inherit gated;
        triton = program (e.mkTritonServer { inherit repo; });
        serve = program serve;
        gateway = program (e.mkGateway { servers.tiny = serve; httpPort = $3; });
      } // { ${4-} };
    in nixpkgs.runCommand \"whole\" (fresh { }) (builtins.concatStringsSep \"\n\" ([ \"mkdir \$out\" ]
      ++ builtins.attrValues (builtins.mapAttrs (name: to: \"ln -s \${to} \$out/\${name}\") links)))"
}

test_whole_tensorrt() {
  slow || return
  local http door
  read -r http door < <(whole_ports 2)
  # One server computes other tokens than the engine that was gated, one is told other golden tokens.
  built "$(whole_of 'plugins.gatherContextLogits = true;' "$http" "$door" '
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
  whole_chat "$whole/serve" "$whole/gateway" "$door"
}

# Its Triton model takes texts: readiness is one answer, whatever the golden tokens.
test_whole_llmapi() {
  slow || return
  local http door
  read -r http door < <(whole_ports 2)
  built "$(whole_of 'kind = "llmapi";' "$http" "$door")" || return 1
  local whole=$path
  whole_triton "$whole/triton" tensorrt_llm '{"text_input": "hello", "sampling_param_max_tokens": 4}' 'stand-in: hello' &&
    whole_chat "$whole/serve" "$whole/gateway" "$door"
}
