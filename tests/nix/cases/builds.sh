# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# What Nix's own isolation does to real builds of ours.

test_hash_mismatch_names_the_file_and_both_hashes() {
  local wrong=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa right
  right=$(sha256sum tests/models/tiny-qwen3/config.json | cut -d' ' -f1)
  ! with_lib build '
    let lock = builtins.fromJSON (builtins.readFile (root + "/tests/models/tiny-qwen3.lock.json"));
    in e.mkHfModel {
      lock = lock // { files = lock.files // { "config.json" = lock.files."config.json" // { sha256 = "'$wrong'"; }; }; };
      inherit (e.catalogue.tiny-qwen3.model) hub;
    }' --no-link &&
    says config.json && says "$wrong" && says "$right"
}

test_equal_files_share_one_store_path() {
  with_lib eval '
    let lock = builtins.fromJSON (builtins.readFile (root + "/tests/models/tiny-qwen3.lock.json"));
        other = lock // { repo = "someone/else"; revision = builtins.hashString "sha1" "other"; };
        file = l: (e.mkHfModel { lock = l; }).files."config.json".outPath;
    in file lock == file other' && says true
}

test_sandboxed_build_sees_no_home_and_no_network() {
  local port server result=0
  python3 -u -m http.server --bind 127.0.0.1 --directory "$tmp" 0 >"$tmp/http" 2>&1 &
  server=$!
  until grep -q 'port [0-9]' "$tmp/http"; do sleep 0.1; done
  port=$(grep -o 'port [0-9]*' "$tmp/http" | cut -d' ' -f2)
  # The server answers from outside.
  (exec 3<>"/dev/tcp/127.0.0.1/$port") || result=1
  with_lib build "nixpkgs.runCommand \"isolated\" (fresh { }) ''
    for path in $root /etc/os-release; do if [ -e \$path ]; then echo \"sees \$path\"; exit 1; fi; done
    if (exec 3<>/dev/tcp/127.0.0.1/$port); then echo 'reaches the host'; exit 1; fi
    touch \$out
  ''" --no-link || result=1
  kill "$server"
  return $result
}

test_nochroot_is_refused_by_a_strict_sandbox() {
  ! with_lib build 'nixpkgs.runCommand "open" (fresh { __noChroot = true; }) "touch $out"' --no-link &&
    says "has '__noChroot' set"
}

test_nochroot_runs_under_a_relaxed_one() {
  ENGINIX_SANDBOX=relaxed with_lib build 'nixpkgs.runCommand "open" (fresh { __noChroot = true; }) "test -e /etc/os-release; echo relaxed > $out"' --no-link
}

# The failure that the project began with: a library that writes to HOME while it is imported.
importer='
  mkdir -p $TMPDIR/site
  printf "%s\n" "import os" "os.makedirs(os.path.expanduser(\"~/.cache/flashinfer\"))" > $TMPDIR/site/writes_home_at_import.py
  PYTHONPATH=$TMPDIR/site ${nixpkgs.python3}/bin/python3 -c "import writes_home_at_import"
'

test_homeless_shelter_is_reproduced() {
  ! ENGINIX_SANDBOX=relaxed with_lib build "nixpkgs.runCommand \"homeless\" (fresh { __noChroot = true; }) ''$importer touch \$out''" --no-link -L &&
    says "Permission denied: '/homeless-shelter'"
}

test_homeless_shelter_is_mended_by_the_environment() {
  ENGINIX_SANDBOX=relaxed with_lib build "nixpkgs.runCommand \"housed\" (fresh { __noChroot = true; }) ''source \${e.environment}; $importer touch \$out''" --no-link -L &&
    with_lib build "nixpkgs.runCommand \"housed-sandboxed\" (fresh { }) ''source \${e.environment}; $importer touch \$out''" --no-link -L
}

test_a_feature_that_the_host_lacks_is_refused() {
  ! with_lib build 'nixpkgs.runCommand "gpu" (fresh { requiredSystemFeatures = [ "cuda-sm120" ]; }) "touch $out"' --no-link &&
    says 'cuda-sm120'
}

test_setup_without_nix_and_apt_says_what_to_install() {
  mkdir -p "$tmp/bin"
  local tool
  for tool in bash dirname id grep ldconfig; do
    ln -sf "$(command -v "$tool" || echo /sbin/$tool)" "$tmp/bin/$tool"
  done
  PATH=$tmp/bin refuses bash tests/hostpkgs/setup.sh core && says 'no apt-get' && says 'https://nixos.org/download'
}
