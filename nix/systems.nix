# The systems that NVIDIA's runtimes exist for.
[
  "x86_64-linux"
  "aarch64-linux"
]
