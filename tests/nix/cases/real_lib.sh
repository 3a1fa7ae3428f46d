# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# The flake and the module over nixpkgs' real lib: NIXPKGS_LIB names the directory that holds its default.nix
# (the repository nix-community/nixpkgs.lib has it alone).

need_lib() {
  [ -e "${NIXPKGS_LIB:-}/default.nix" ] || {
    skip 'NIXPKGS_LIB does not name nixpkgs'"'"' lib directory'
    return 77
  }
}

# A stand-in package set whose lib is the real one.
with_real_lib() {
  rm -rf "$tmp/hostpkgs"
  cp -r tests/hostpkgs "$tmp/hostpkgs"
  cp -rL "$NIXPKGS_LIB" "$tmp/hostpkgs/nixpkgs-lib"
}

module() { # settings, what to take of the result
  quietly "$nix" eval --impure --json --expr "
    (import $root/tests/nix/module.nix { lib = import $NIXPKGS_LIB; settings = $1; }).$2"
}

test_real_lib_flake_check() {
  need_lib || return
  with_real_lib
  quietly "$tmp/hostpkgs/nix" flake check --no-build
}

test_real_lib_builds_the_same_derivations() {
  need_lib || return
  with_real_lib
  quietly "$tmp/hostpkgs/nix" eval --raw .#tiny-qwen3-engine.name && says tiny-qwen3-engine &&
    quietly "$tmp/hostpkgs/nix" eval .#checks.x86_64-linux.pure.name && says enginix-pure-tests
}

test_real_lib_module_renders_a_loopback_unit() {
  need_lib || return
  module '{ }' service && says '--host 127.0.0.1' && says '"DynamicUser":true' &&
    module '{ }' failing && says '[]' && module '{ }' ports && says '[]'
}

test_real_lib_module_asserts() {
  need_lib || return
  module '{ grpcPort = 8000; }' failing && says 'httpPort' && says 'share a port' &&
    module '{ openFirewall = true; }' failing && says 'nobody outside reaches' &&
    module '{ openFirewall = true; host = "0.0.0.0"; }' ports && says '[8000,8001]' &&
    module '{ repo = { type = "derivation"; outPath = "/nix/store/x"; name = "x"; runtime = "trtllm-1.2.1"; }; }' failing && says 'trtllm-1.2.1'
}
