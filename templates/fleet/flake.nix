{
  description = "Machines with GPUs that serve one model, each with an engine for its GPU";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
  inputs.enginix.url = "github:enginix/enginix";
  inputs.enginix.inputs.nixpkgs.follows = "nixpkgs";

  outputs = { nixpkgs, enginix, ... }:
    let
      lib = enginix.legacyPackages.x86_64-linux;
      # nix run github:enginix/enginix#pin -- Qwen/Qwen3-0.6B, then git add.
      model = lib.mkHfModel { lock = ./qwen3-0.6b.lock.json; };
      # Machine -> target of its GPU (enginix target). One engine a kind of GPU.
      fleet = { hopper = "h200"; blackwell = "rtx-pro-6000"; };
      engineFor = target: lib.mkEngine { kind = "llmapi"; inherit model target; gates = { }; };
      machine = name: target: nixpkgs.lib.nixosSystem {
        system = "x86_64-linux";
        modules = [
          enginix.nixosModules.default
          # Disks, network and the driver: nixos-generate-config writes them.
          ./hosts/${name}.nix
          {
            services.enginix = {
              enable = true;
              servers.qwen3 = {
                engine = engineFor target;
                ownServer = true;
                gpus = [ 0 ];
                httpPort = 8010;
              };
              # Every machine has the same key, and answers for itself.
              gateway = {
                enable = true;
                keyFile = "/run/secrets/enginix-gateway";
                host = "0.0.0.0";
                openFirewall = true;
              };
              # It builds the engine for its own GPU.
              gpuBuilder = { enable = true; sms = [ (lib.check.gpus.find "fleet" target).sm ]; };
            };
          }
        ];
      };
    in
    {
      nixosConfigurations = builtins.mapAttrs machine fleet;
      packages.x86_64-linux = builtins.mapAttrs (_: engineFor) fleet;
    };
}
