{
  description =
    "Hugging Face model in, served TensorRT-LLM deployment out, by checked Nix derivations";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs = inputs: import ./nix/outputs.nix inputs;
}
