# Pure evaluation checks: no pkgs, milliseconds, errors that list the ways out.
{ lib }:
let
  self = {
    names = import ./names.nix { inherit lib; };
    arguments = import ./arguments.nix ({ inherit lib; } // self);
    address = import ./address.nix;
    secrets = import ./secrets.nix { inherit lib; };
    license = import ./license.nix { inherit lib; };
    lock = import ./lock.nix ({ inherit lib; } // self);
    checkpoint = import ./checkpoint.nix ({ inherit lib; } // self);
    gpus = import ./gpus.nix ({ inherit lib; } // self);
    llmapiAdvice = import ./llmapi-advice.nix { inherit lib; };
    kindSupport = import ./kind-support.nix { inherit lib; };
    target = import ./target.nix ({ inherit lib; } // self);
    engine = import ./engine.nix ({ inherit lib; } // self);
    limits = import ./limits.nix ({ inherit lib; } // self);
    runtime = import ./runtime.nix ({ inherit lib; } // self);
    llmapi = import ./llmapi.nix ({ inherit lib; } // self);
    options = import ./options.nix ({ inherit lib; } // self);
    flags = import ./flags.nix ({ inherit lib; } // self);
    plan = import ./plan.nix { inherit lib; };
    edgellmPlan = import ./edgellm-plan.nix ({ inherit lib; } // self);
    rtxPlan = import ./rtx-plan.nix ({ inherit lib; } // self);
  };
in
self
