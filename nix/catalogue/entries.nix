# name -> file of a model. Listed, not discovered, and evaluated only when asked for.
{
  tiny-qwen3 = ./tiny-qwen3.nix;
  tiny-qwen3-rtx = ./tiny-qwen3-rtx.nix;
  qwen3-0_6b = ./qwen3-0_6b.nix;
  qwen3-0_6b-rtx = ./qwen3-0_6b-rtx.nix;
  qwen3-8b = ./qwen3-8b.nix;
  qwen3-32b-fp8 = ./qwen3-32b-fp8.nix;
  qwen3-32b-nvfp4 = ./qwen3-32b-nvfp4.nix;
  qwen2_5-7b-instruct = ./qwen2_5-7b-instruct.nix;
  llama-3_1-8b-instruct = ./llama-3_1-8b-instruct.nix;
  llama-3_1-8b-fp8 = ./llama-3_1-8b-fp8.nix;
  phi-4-nvfp4 = ./phi-4-nvfp4.nix;
  tinyllama-1_1b-chat = ./tinyllama-1_1b-chat.nix;
  gpt2 = ./gpt2.nix;
}
