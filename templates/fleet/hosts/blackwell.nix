# Of blackwell alone: what nixos-generate-config writes on it, its name and its NVIDIA driver.
{ }
