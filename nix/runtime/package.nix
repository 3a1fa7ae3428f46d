# The part of the Python package that builds engines inside a runtime: standard library alone.
#
# `driver` has no command line: a new sub-command or help text must not build an engine again, which takes hours.
# `command` is for wrappers that check, run and serve.
{ pkgs, python, ... }@scope:
part:
let
  driver = [
    "__init__.py"
    "console.py"
    "credentials.py"
    "data/__init__.py"
    "data/architectures.json"
    "data/build_effects.json"
    "data/build_options.json"
    "data/environment.json"
    "data/failures.json"
    "data/gpus.json"
    "data/quantization.json"
    "data/quantization_support.json"
    "data/runtimes.json"
    "engine/__init__.py"
    "engine/effective_build.py"
    "engine/failures.py"
    "engine/lora_adapters.py"
    "engine/options.py"
    "engine/options_rules.py"
    "engine/preflight.py"
    "engine/target.py"
    "engine/tensorrt.py"
    "engine/tensorrt_checkpoint.py"
    "engine/tensorrt_llm_api.py"
    "engine/tensorrt_main.py"
    "engine/tensorrt_request.py"
    "engine/tensorrt_result.py"
    "engine/tensorrt_stage.py"
    "errors.py"
    "files.py"
    "manifest.py"
    "model"
    "optional_libraries.py"
    "process.py"
    "runtime/__init__.py"
    "runtime/child.py"
    "runtime/driver.py"
    "runtime/image.py"
    "runtime/sandbox.py"
    "runtime/supervise.py"
    "runtime/table.py"
    "tables.py"
    "wording.py"
  ];
  command = driver ++ [
    "cli.py"
    "commands/__init__.py"
    "commands/build.py"
    "commands/cache.py"
    "commands/check.py"
    "commands/runner.py"
    "commands/runtime.py"
    "data/llm_args.json"
    "engine/check.py"
    "engine/llmapi.py"
    "engine/runner.py"
    "engine/tensorrt_command.py"
    "engine/trtllm_serve.py"
    "runtime/pin.py"
  ];
in
import ../package.nix scope {
  name = "enginix-engine-${part}";
  kept = if part == "driver" then driver else command;
  inherit python;
  builder = ../builders/engine-package.sh;
  attributes = {
    main = if part == "driver" then "enginix.engine.tensorrt_main" else "enginix.cli";
    bubblewrap = pkgs.bubblewrap or "";
  };
}
