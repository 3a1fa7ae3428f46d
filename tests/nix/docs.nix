# What the examples of the documentation may name, and what evaluating one means.
{ nixpkgsLib ? null }:
let
  pkgs = import ../hostpkgs (
    {
      system = "x86_64-linux";
    }
    // (if nixpkgsLib == null then { } else { lib = import nixpkgsLib; })
  );
  # Stand-ins for the runtime with TensorRT, which is the reader's to bring, and for crane, which nixpkgs has.
  scope = (import ../../nix { inherit pkgs; }).override {
    crane = pkgs.bash;
    edgellm-runtime = pkgs.python3 // {
      plugin = "/nix/store/x-plugin";
    };
  };
  flake = {
    nixosModules.default = ../../nix/nixos;
    legacyPackages.x86_64-linux = scope;
    packages.x86_64-linux = import ../../nix/packages.nix scope;
    lib = {
      mkLib = pkgs: import ../../nix { inherit pkgs; };
      inherit (scope) check;
    };
  };
  runtimePackage = {
    outPath = "/nix/store/x-runtime";
    id = "trtllm-1.2.1";
    command = "/nix/store/x-command";
    rootfs = "/nix/store/x-rootfs";
    rootfsFor = _: "/nix/store/x-rootfs";
    pinFile = "";
    driver = null;
    inherit (scope.mkRuntime { id = "trtllm-1.2.1"; }) row image;
  };
  # An engine as mkEngine returns it, of a GPU that this machine does not have.
  ofGpu = kind: {
    type = "derivation";
    name = "big-engine";
    outPath = "/nix/store/x-big-engine";
    drvPath = "/nix/store/x-big-engine.drv";
    inherit kind runtimePackage;
    modelName = "big";
    runtime = "trtllm-1.2.1";
    request.limits.maxBatchSize = 16;
    parallel = { tensorParallel = 1; pipelineParallel = 1; };
  };

  # Everything is evaluated down to derivations, which are instantiated and not built.
  force =
    value:
    if builtins.isAttrs value then
      if value.type or null == "derivation" then
        builtins.seq value.drvPath true
      # The functions over a package set: the set is there.
      else if value ? override && value ? pkgs then
        builtins.seq value.pkgs.bash.drvPath true
      else if value ? outPath || value ? override then
        true
      else
        builtins.all (name: force value.${name}) (builtins.attrNames value)
    else if builtins.isList value then
      builtins.all force value
    else
      builtins.seq value true;

  # A configuration over NixOS' own option types, down to the text of units and of pre-switch
  # checks.
  host =
    value:
    let
      lib = import nixpkgsLib;
      nixos = import ../nixpkgs/nixos.nix { inherit lib; };
    in
    nixos.evaluate {
      pkgs =
        lib.genAttrs [ "coreutils" "findutils" "gnugrep" "gnused" "systemd" ] (name: pkgs.runCommand name { } "")
        // pkgs;
      # One that the example imports by itself is the same module.
      modules = [
        flake.nixosModules.default
        # An example of servers alone is of a host that has them on.
        { services.enginix.enable = lib.mkDefault (value ? services.enginix.servers); }
        value
      ];
    };

  # A host of a flake: its assertions hold, and its units are written.
  nixosSystem =
    { modules, ... }:
    if nixpkgsLib == null then
      builtins.length modules > 0
    else
      let
        result = host { imports = modules; };
      in
      if result.failing != [ ] then
        throw (builtins.concatStringsSep "\n" result.failing)
      else
        builtins.deepSeq [ result.units result.preSwitch ] true;
in
{
  names = scope // {
    # nixpkgs has kubectl; the package set of the tests does not.
    pkgs = pkgs // {
      kubectl = pkgs.bash;
    };
    # An image of the runtime, as dockerTools.pullImage names it.
    base.imageName = "nvcr.io/nvidia/tritonserver";
    nixpkgs = ../nixpkgs;
    enginix = flake;
    lib = pkgs.lib // scope;
    inherit (scope.catalogue.tiny-qwen3) model checkpoint repo;
    engine = scope.mkEngine {
      kind = "edgellm";
      inherit (scope.catalogue.qwen3-0_6b) model;
      target = "rtx-5090";
      limits = {
        maxInputLen = 128;
        maxKvCacheCapacity = 256;
        maxBatchSize = 1;
      };
    };
    big = ofGpu "tensorrt";
    # Of agenix and sops-nix: what their modules set.
    config = {
      age.secrets.enginix-gateway.path = "/run/agenix/enginix-gateway";
      sops.secrets.enginix-gateway.path = "/run/secrets/enginix-gateway";
    };
    calibration = scope.mkCalibration {
      tokenizer = scope.catalogue.tiny-qwen3.model;
      text = ./docs.nix;
    };
    target = "h200";
    runtime = "trtllm-1.2.1";
    limits = {
      maxBatchSize = 4;
      maxInputLen = 128;
      maxSeqLen = 256;
    };
    mkLib = pkgs: import ../../nix { inherit pkgs; };
    server = scope.catalogue.tiny-qwen3.triton-server;
  };

  # A configuration of NixOS goes through the module, a flake through its outputs.
  check =
    value:
    if value ? services.enginix then
      if nixpkgsLib == null then
        force (removeAttrs value.services.enginix [ ])
      else
        let
          result = host value;
        in
        if result.failing != [ ] then
          throw (builtins.concatStringsSep "\n" result.failing)
        else
          force [
            result.units
            result.preSwitch
            result.warnings
          ]
    else if value ? outputs then
      force (
        value.outputs {
          enginix = flake;
          nixpkgs.lib = { inherit nixosSystem; };
        }
      )
    else
      force value;
}
