# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# The Python environments: the wheels of the locks by hash, by the same function over every package set.

environment_names=(core runtime modelopt edgellm rtx gateway)

built_environments() { # names → NAME=PATH in $environments
  local name
  environments=()
  for name in "$@"; do
    environments+=("$name=$(tests/hostpkgs/environments.sh "$name" 2>"$out")") || return 1
  done
}

test_environments_need_no_library_that_is_not_listed() {
  built_environments "${environment_names[@]}" lint dev tritonserver && quietly python3 tests/nix/environments.py libraries "${environments[@]}"
}

test_environments_have_what_their_locks_say() {
  built_environments "${environment_names[@]}" lint dev && quietly python3 tests/nix/environments.py contents "${environments[@]}"
}

test_environments_locks_hold_what_is_required() { quietly python3 tests/nix/environments.py requirements; }

# Each file that a build of it fetches has the hash of a lock, and the environment that tests use is the flake's own.
test_environments_are_the_flakes_by_hash() {
  local name drv
  for name in "${environment_names[@]}"; do
    with_lib eval "e.$name-python.drvPath" --raw || return 1
    drv=$(grep -o '/nix/store/[^ ]*drv$' "$out")
    [ "$(nix-store -q --outputs "$drv")" = "$(tests/hostpkgs/environments.sh "$name")" ] || return 1
    nix-store -qR "$drv" | grep '\.whl\.drv$' | xargs nix show-derivation --extra-experimental-features nix-command >"$out" || return 1
    python3 - "$out" "nix/python/locks/$name.json" <<'PY' || return 1
import json, sys
fetched = {d["outputs"]["out"]["hash"] for d in json.load(open(sys.argv[1])).values()}
wheels = json.load(open(sys.argv[2]))["wheels"].values()
locked = {(w["files"].get("any") or w["files"]["x86_64-linux"])["sha256"] for w in wheels}
assert fetched == locked and len(locked) == len(wheels) > 10, fetched ^ locked
PY
  done
  # The path that converts stays free of torch.
  quietly nix-store -qR "$(tests/hostpkgs/environments.sh core)" && says huggingface-hub && ! grep -q torch "$out"
}

# Wheels of this test: name, version, and a file each.
made_wheel='
  wheel = name: file: text: nixpkgs.runCommand "${name}-1-py3-none-any.whl" { passthru.pname = name; } "
    mkdir -p w/${name}-1.dist-info w/$(dirname ${file})
    printf \"%s\" ${nixpkgs.lib.escapeShellArg text} >w/${file}
    printf \"Metadata-Version: 2.1\nName: ${name}\nVersion: 1\n\" >w/${name}-1.dist-info/METADATA
    (cd w && python3 -m zipfile -c ../made.zip *) && cp made.zip \$out";
  unpacked = wheel: nixpkgs.stdenvNoCC.mkDerivation {
    name = "unpacked"; nativeBuildInputs = [ e.python ]; src = wheel; installer = root + "/nix/builders/python_wheel.py";
    installPhase = "source ${root + "/nix/builders/python-wheel.sh"}";
  };
  joined = wheels: import (root + "/nix/python/environment.nix") e { name = "joined"; inherit wheels; };'

test_environments_of_wheels_that_bring_one_file_are_refused() {
  with_lib build "let $made_wheel in joined [ (unpacked (wheel \"a\" \"space/one.py\" \"x = 1\")) (unpacked (wheel \"b\" \"space/two.py\" \"y = 2\")) (unpacked (wheel \"c\" \"space/one.py\" \"x = 1\")) ]" -o "$tmp/joined" &&
    quietly "$tmp/joined/bin/python3" -c 'import space.one, space.two; print(space.one.x + space.two.y)' && says 3 || return 1
  ! with_lib build "let $made_wheel in joined [ (unpacked (wheel \"a\" \"space/one.py\" \"x = 1\")) (unpacked (wheel \"b\" \"space/one.py\" \"x = 2\")) ]" --no-link -L &&
    says 'two wheels bring one file with different contents' && says space/one.py
}

test_environments_wheel_with_a_member_outside_is_refused() {
  ! with_lib build "let $made_wheel evil = nixpkgs.runCommand \"evil-1-py3-none-any.whl\" { } ''
      python3 -c \"import zipfile; zipfile.ZipFile('evil.zip', 'w').writestr('../../escaped.py', 'x')\"; cp evil.zip \$out''; in unpacked evil" --no-link -L &&
    says 'outside of its root'
}

# Where pip finds nothing, a wheel is taken from its own address, by its hash.
test_environments_wheel_is_looked_for_in_the_next_place() {
  mkdir -p "$tmp/index" && echo "$EPOCHREALTIME" >"$tmp/index/made-1-py3-none-any.whl" || return 1
  python3 -u -m http.server --bind 127.0.0.1 --directory "$tmp/index" 0 >"$tmp/index.log" 2>&1 &
  local server=$! result=0 port hash
  hash=$(sha256sum "$tmp/index/made-1-py3-none-any.whl" | cut -d' ' -f1)
  until port=$(grep -oP 'port \K[0-9]+' "$tmp/index.log"); do sleep 0.05; done
  fetched() { # sha256, path of the address
    with_lib build "nixpkgs.fetchurl { name = \"made-1-py3-none-any.whl\"; url = \"http://127.0.0.1:$port/$2\"; sha256 = \"$1\"; }" --no-link -L
  }
  { fetched "$hash" made-1-py3-none-any.whl && says 'pip finds no made-1-py3-none-any.whl; taking http://127.0.0.1' &&
    ! fetched "${hash//[0-4]/5}" made-1-py3-none-any.whl && says 'hash mismatch' &&
    ! fetched "${hash//[0-4]/6}" missing && says 'is neither where pip looks nor at' && says PIP_FIND_LINKS; } || result=1
  kill $server
  return $result
}

# torch may be a package, a description, or several of both; only environments that have torch change.
test_environments_take_another_torch() {
  with_lib eval '
    let
      given = nixpkgs.runCommand "own-torch" { passthru.pname = "torch"; } "mkdir $out";
      described = { file = "torch-9.9-cp311-cp311-manylinux_2_28_x86_64.whl"; sha256 = builtins.hashString "sha256" "x"; };
      more = { file = "nvidia_cublas-1-py3-none-any.whl"; sha256 = builtins.hashString "sha256" "y"; };
      names = torch: map (w: w.pname) (e.override { inherit torch; }).runtime-python.wheels;
      count = builtins.length e.runtime-python.wheels;
      has = torch: builtins.filter (n: n == "torch" || n == "nvidia-cublas") (names torch);
      same = (e.override { torch = given; }).core-python.drvPath == e.core-python.drvPath;
      versions = map (w: w.version) (builtins.filter (w: w.pname == "torch") (e.override { torch = described; }).modelopt-python.wheels);
      # As nixpkgs answers: the package, what it propagates, the interpreter.
      module = name: nixpkgs.runCommand name { passthru = { pname = name; pythonModule = null; }; } "mkdir $out";
      python = e.python // { pname = "python3"; pkgs.requiredPythonModules = given: given ++ [ (module "triton") (module "numpy") python ]; };
      propagated = map (w: w.pname) (e.override { inherit python; torch = module "torch"; }).runtime-python.wheels;
      added = builtins.filter (n: builtins.elem n [ "triton" "numpy" "torch" "python3" ]) propagated;
    in [ (builtins.sort builtins.lessThan added) (has given) (has described) (has [ described more ]) (builtins.length (names described) - count) same versions ]' --json &&
    says '[["numpy","torch","triton"],["torch"],["torch"],["torch","nvidia-cublas"],0,true,["9.9"]]' || return 1
  ! with_lib eval '(e.override { torch = { file = "torch.tar.gz"; sha256 = builtins.hashString "sha256" "x"; }; }).runtime-python.drvPath' &&
    says 'torch.tar.gz is not the file name of a wheel'
}

# Where a wheel is not made for the system, the error says which, and what to pass; the flake leaves such outputs out
# (tests/nix/cases/nixpkgs.sh).
test_environments_that_a_system_has_not() {
  local arm='arm = import (root + "/nix") { pkgs = nixpkgs // { stdenvNoCC = nixpkgs.stdenvNoCC // { hostPlatform.system = "aarch64-linux"; }; }; };'
  with_lib eval "let $arm in arm.availability" --json && says '"core":true' && says '"gateway":true' && says '"runtime":false' && says '"tritonserver":true' &&
    ! with_lib eval "let $arm in arm.runtime-python.drvPath" && says 'needs torch 2.13.0+cpu' && says 'not for aarch64-linux' && says 'override { torch' &&
    ! with_lib eval "(import (root + \"/nix\") { pkgs = nixpkgs // { stdenvNoCC = nixpkgs.stdenvNoCC // { hostPlatform.system = \"riscv64-linux\"; }; }; }).tritonserver.drvPath" && says "wheel exists for aarch64-linux and x86_64-linux only" &&
    with_lib eval "let $arm in (arm.override { torch = { file = \"torch-9-cp311-cp311-manylinux_2_28_aarch64.whl\"; sha256 = builtins.hashString \"sha256\" \"x\"; }; }).runtime-python.drvPath" --raw
}

test_environments_say_what_they_are() {
  with_lib eval '
    let
      of = name: builtins.head (builtins.filter (w: w.pname == name) e.runtime-python.wheels);
      facts = w: [ w.meta.sourceProvenance w.meta.platforms (map (l: l.free) w.meta.license) ];
    in { torch = facts (of "torch"); httpx = facts (of "httpx"); main = e.runtime-python.meta.mainProgram;
         triton = map (l: l.free) e.tritonserver.meta.license; home = (of "httpx").meta.homepage;
         nvidias = map (w: w.pname) (builtins.filter (w: builtins.any (l: !l.free) w.meta.license) e.rtx-python.wheels);
         unfree = builtins.filter (w: builtins.any (l: !l.free) w.meta.license) (builtins.concatMap (p: p.wheels) [ e.core-python e.runtime-python e.modelopt-python e.edgellm-python e.gateway-python ]); }' --json || return 1
  says '"main":"python3"' && says '"triton":[true,true,false]' && says '"torch":[[{"isSource":false' && says '["x86_64-linux"],[true' &&
    says '"httpx":[[{"isSource":true' && says '"unfree":[]' &&
    says '"nvidias":["tensorrt-rtx-cu13-bindings","tensorrt-rtx-cu13-libs"]'
}

# Bytecode and links are the same each time.
test_environments_repeat() {
  with_lib build 'builtins.head (builtins.filter (w: w.pname == "huggingface-hub") e.core-python.wheels)' --no-link --rebuild &&
    with_lib build 'e.core-python' --no-link --rebuild
}
