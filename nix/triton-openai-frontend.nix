# mkRuntime's output, source -> derivation
#
# Triton's own OpenAI frontend out of a runtime's image: its bindings unpacked, its source beside them. Everything comes
# from the image: what the frontend imports besides, tensorrt_llm requires, and is looked for.
{
  lib,
  pkgs,
  enginix,
  ...
}:
# runtime: mkRuntime's output. source: directory python/openai of Triton's sources, where the image has none.
runtime: source:
pkgs.stdenvNoCC.mkDerivation {
  name = "${runtime.id}-openai-frontend";
  buildCommandPath = ./builders/triton-openai-frontend.sh;
  inherit enginix;
  inherit (runtime) rootfs id;
  source = if source == null then "" else source;
  preferLocalBuild = true;
  meta.description = "Triton's OpenAI frontend of ${runtime.id}";
}
