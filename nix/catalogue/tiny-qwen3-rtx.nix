# tiny-qwen3 as an engine of TensorRT for RTX, for every GPU that it takes.
{ catalogue, ... }:
{
  inherit (catalogue.tiny-qwen3) model;
  engine = {
    kind = "rtx";
    inherit (catalogue.tiny-qwen3) checkpoint;
  };
}
