# Qwen/Qwen3-0.6B as an engine of TensorRT for RTX, for every GPU that it takes.
#
{ catalogue, ... }:
{
  inherit (catalogue.qwen3-0_6b) model;
  engine = {
    kind = "rtx";
    inherit (catalogue.qwen3-0_6b) checkpoint;
  };
}
