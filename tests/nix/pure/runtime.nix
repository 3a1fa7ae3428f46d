# Runtimes: the table, those that it does not have, their pins and drivers.
{ lib, check }:
let
  fails = import ../fails.nix;
  sha = lib.concatStringsSep "" (builtins.genList (_: "a") 64);
  read = name: lib.importJSON (../../../python/enginix/data + "/${name}.json");
  inherit (read "runtime/runtimes") runtimes;
  inherit (read "machine/gpus") gpus;
  run = check.engine.runtime "e" runtimes;
  run' = runtime: kind: check.engine.runtime "e" (check.runtime.rows runtime) kind asked;
  asked = {
    target = "h200";
    limits = { };
  };
in
{
  testEveryGpuAndRuntimeHasASource = {
    expr = builtins.filter (row: !(row ? source)) (builtins.attrValues gpus ++ builtins.attrValues runtimes);
    expected = [ ];
  };
  testUnverifiedHashesSaySo = {
    expr = builtins.filter (h: h.status != "unverified" && h.digest == null) (
      builtins.concatMap (r: builtins.concatMap (i: builtins.attrValues i.hashes) (builtins.attrValues (r.images or { }))) (
        builtins.attrValues runtimes
      )
    );
    expected = [ ];
  };
  testRuntimeAccepts = {
    expr = (run "tensorrt" asked "trtllm-1.1.0").id;
    expected = "trtllm-1.1.0";
  };
  testRuntimeAfterTheEngineEra = {
    expr = fails (run "tensorrt" asked "trtllm-1.3.0rc26");
    expected = true;
  };
  testRuntimeUnknown = {
    expr = map (id: fails (run "tensorrt" asked id)) [ "trtllm-1.2" "reference" ];
    expected = [ true true ];
  };
  testDriverFloor = {
    expr = map (v: fails (check.engine.driver "e" (run "tensorrt" asked "trtllm-1.2.1") v)) [ null "590.44.01" "595.1" "580.95.05" ];
    expected = [ false false false true ];
  };
  # The twin in Python tells these apart case by case (tests/python/engine_tensorrt/test_twin_runtimes.py).
  testRuntimeUnlisted =
    let
      described = {
        like = "trtllm-1.4.0rc1";
        image = "a.b/c:1.4.0rc2";
        versions.tensorrtLlm = "1.4.0rc2";
      };
      row = check.runtime.unlisted "f" described;
      made = { inherit row; inherit (row) id; };
    in
    {
      expr = [
        (run' made "llmapi" row.id).id
        (check.runtime.spec made == described)
        (check.runtime.spec "trtllm-1.2.1")
        (fails (run' made "tensorrt" row.id))
        (fails (run' "trtllm-1.2.1" "llmapi" row.id))
        (fails (check.runtime.unlisted "f" (described // { versions = { }; })))
      ];
      expected = [ "trtllm-1.4.0rc2-unverified" true "trtllm-1.2.1" true true true ];
    };
  # What takes a runtime, and what Triton serves.
  testRuntimeOf =
    let
      made = {
        id = "r-unverified";
        row = {
          kinds = [ "llmapi" ];
          paths.triton = null;
        };
      };
      packageOf = check.runtime.packageOf "f" ({ id }: "made of ${id}");
      withTriton = {
        id = "r";
        image = "26.07";
        row = {
          paths.triton = "/opt/tritonserver";
          images."26.07".tritonServer = "2.71.0";
        };
      };
    in
    {
      expr = [
        (check.runtime.idOf "f" "r")
        (check.runtime.idOf "f" made)
        (packageOf "r")
        (packageOf made).id
        (check.runtime.triton "f" withTriton).version
        (fails (check.runtime.triton "f" made))
      ]
      ++ map (v: fails (check.runtime.idOf "f" v) && fails (packageOf v)) [
        null
        3
        [ ]
        { }
        { id = "r"; }
        { like = "r"; }
      ];
      expected = [ "r" "r-unverified" "made of r" "r-unverified" "2.71.0" true true true true true true true ];
    };
  testPin =
    let
      pin = {
        runtime = "r";
        image = "26.07";
        reference = "registry:5000/x:26.07";
        digest = "sha256:${sha}";
        system = "x86_64-linux";
        hash = "sha256-x";
        status = "computed";
      };
      pinned = check.runtime.pin "f" "r" "x86_64-linux";
    in
    {
      expr = [ (pinned pin).digest ] ++ map fails [
        (pinned (pin // { runtime = "s"; }))
        (pinned (pin // { system = "aarch64-linux"; }))
        (pinned (pin // { digest = "latest"; }))
        (pinned (pin // { strange = 1; }))
        (pinned (builtins.removeAttrs pin [ "hash" ]))
      ];
      expected = [ "sha256:${sha}" true true true true true ];
    };
}
