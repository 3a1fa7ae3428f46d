"""A build backend under the name that NVIDIA's source packages ask for; it copies their PKG-INFO."""
