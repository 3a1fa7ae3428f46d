# A machine that builds engines on its GPU, by one switch.
{ config, lib, ... }:
let
  cfg = config.services.enginix.gpuBuilder;
in
{
  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.sms != [ ];
        message =
          "services.enginix.gpuBuilder: sms is empty, so no engine would ever be built here; name "
          + "the GPUs' SM versions, for instance [ 90 ] (nvidia-smi --query-gpu=compute_cap).";
      }
    ];
    programs.nix-required-mounts = {
      enable = true;
      presets.nvidia-gpu.enable = true;
    };
    # NixOS sets its own at lower priority: any definition drops them, so they are repeated.
    nix.settings.system-features = [
      "nixos-test"
      "benchmark"
      "big-parallel"
      "kvm"
      "cuda"
    ]
    ++ map (sm: "cuda-sm${toString sm}") cfg.sms;
  };
}
