# A whole NixOS in a virtual machine: the module's server is up when its unit is started, answers,
# and a generation that cannot answer is refused while the old one serves. Needs nixpkgs and a
# machine with KVM:
#
#   nix build .#checks.x86_64-linux.nixos -L
{ pkgs, catalogue, ... }@scope:
let
  inherit (catalogue.tiny-qwen3) engine triton-repo;

  # It loads as any other, and says other tokens than its manifest promises.
  broken =
    pkgs.runCommand "broken-triton-repo"
      {
        repo = triton-repo;
        nativeBuildInputs = [ pkgs.jq ];
      }
      ''
        cp -rL $repo $out
        chmod -R u+w $out
        jq '.results.golden.tokens |= map(if . == 0 then 1 else . - 1 end)' $repo/enginix.json >$out/enginix.json
      ''
    // {
      inherit (triton-repo) kind runtime;
    };
in
pkgs.testers.runNixOSTest {
  name = "enginix";

  nodes.machine =
    { lib, ... }:
    {
      imports = [ ../../nix/nixos ];

      services.enginix = {
        enable = true;
        # The flake's own package set: that of a test is not configured for what is not free.
        inherit scope;
        servers.tiny = {
          inherit engine;
        };
        gateway.enable = true;
      };

      specialisation.broken.configuration.services.enginix.servers.tiny = {
        engine = lib.mkForce null;
        repo = broken;
      };
      specialisation.changed.configuration.services.enginix.servers.tiny.exitTimeout = 31;

      # Machines of tests leave it out.
      system.switch.enable = true;
      virtualisation = {
        cores = 2;
        memorySize = 6144;
        diskSize = 4096;
      };
    };

  testScript = ''
    import json

    UNIT = "enginix-tiny.service"


    def generate() -> str:
        request = json.dumps({"text_input": "The license grants you", "max_tokens": 8})
        url = "http://127.0.0.1:8000/v2/models/ensemble/generate"
        answer = machine.succeed(f"curl -sf -m 60 {url} -d '{request}'")
        return json.loads(answer)["text_output"]


    def main_pid() -> str:
        return machine.succeed(f"systemctl show --property MainPID --value {UNIT}").strip()


    def switch(specialisation: str) -> tuple[int, str]:
        script = f"/run/booted-system/specialisation/{specialisation}/bin/switch-to-configuration"
        return machine.execute(f"{script} test 2>&1", timeout=900)


    machine.wait_for_unit(UNIT, timeout=900)

    with subtest("the server answers once its unit is started"):
        first = generate()
        assert first.strip(), "an empty answer"
        machine.succeed("curl -sf http://127.0.0.1:8002/metrics | grep -q nv_inference_request_success")

    with subtest("the gateway names the model"):
        machine.wait_for_unit("enginix-gateway.service", timeout=900)
        models = json.loads(machine.succeed("curl -sf http://127.0.0.1:4000/v1/models"))
        assert [m["id"] for m in models["data"]] == ["tiny"], models

    with subtest("the unit is hardened"):
        user = machine.succeed(f"ps -o user= -p {main_pid()}").strip()
        assert user != "root", user
        exposure = machine.succeed(f"systemd-analyze security --no-pager {UNIT} | tail -n 1")
        print(exposure)

    before = main_pid()

    with subtest("a generation that cannot answer is refused"):
        status, output = switch("broken")
        assert status != 0, output
        assert "enginix-tiny" in output and "failed" in output, output
        assert main_pid() == before, "the old server was stopped"
        assert generate() == first

    with subtest("one that answers takes over"):
        status, output = switch("changed")
        assert status == 0, output
        machine.wait_for_unit(UNIT, timeout=900)
        assert main_pid() != before
        assert generate() == first
  '';
}
