# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# Examples of the documentation are evaluated; the page of the module's options is what the module says.

examples_of_docs() { # arguments of every example
  rm -rf "$tmp/docs"
  python3 tests/nix/docs.py "$root" "$tmp/docs" || return 1
  local file failed=0 files=("$tmp"/docs/*.nix)
  # One evaluation of all; where it fails, each of its own, for the names of those that fail.
  "$nix" eval --impure --expr "map (file: import file { root = $root; $1 }) [ ${files[*]} ]" >"$tmp/examples" 2>&1 &&
    [ "$(tail -n 1 "$tmp/examples" | grep -ow true | wc -l)" = ${#files[@]} ] && [ ${#files[@]} -gt 10 ] && return
  for file in "${files[@]}"; do
    "$nix" eval --impure --expr "import $file { root = $root; $1 }" >"$tmp/example" 2>&1 || {
      failed=1
      echo "$(basename "$file"): $(grep -v '^warning' "$tmp/example" | head -n 6)" >>"$out"
    }
  done
  [ $failed = 0 ] && [ ${#files[@]} -gt 10 ]
}

test_docs_examples_evaluate() {
  : >"$out"
  examples_of_docs ''
}

test_docs_examples_evaluate_over_the_real_lib() {
  need_lib || return
  : >"$out"
  examples_of_docs "nixpkgsLib = $NIXPKGS_LIB;"
}

test_docs_example_with_a_typo_does_not() {
  mkdir -p "$tmp/wrong/docs" && cp -r nix tests python "$tmp/wrong/" &&
    cp -r templates "$tmp/wrong/" && printf 'x\n```nix\nmkTritonRepo { engine = enginix.packages.x86_64-linux.tiny-qwen3-engine; maxBatchSise = 4; }\n```\n' | tee "$tmp/wrong/README.md" >"$tmp/wrong/docs/a.md"
  python3 tests/nix/docs.py "$tmp/wrong" "$tmp/typo" &&
    refuses "$nix" eval --impure --expr "import $tmp/typo/a-2.nix { root = $root; }" && says maxBatchSise
}

test_docs_error_of_the_tutorial_is_evaluations() {
  refuses with_lib eval 'e.check.gpus.find "mkEngine { kind = \"tensorrt\"; }" "h2000"' &&
    says "$(grep 'unknown target' docs/tutorial/first-model.md)"
}

test_docs_options_page_is_fresh() {
  quietly "$nix" eval --impure --raw --expr "import $root/tests/nix/options.nix" || return 1
  grep -av '^warning' "$out" >"$tmp/options.md"
  quietly diff docs/reference/nixos-options.md "$tmp/options.md" ||
    { echo "    write it again: tests/hostpkgs/nix eval --impure --raw --expr 'import ./tests/nix/options.nix' >docs/reference/nixos-options.md" && false; }
}
