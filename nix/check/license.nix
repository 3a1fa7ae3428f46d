{ lib, ... }:
{
  # The licence that the Hub names, as nixpkgs has licences. Where SPDX does not know it, nobody here judges whether it is free:
  # nixpkgs then evaluates what bears it, and `config.blocklistedLicenses` can refuse it (docs/catalogue.md).
  # named :: string -> set
  named =
    id:
    lib.getLicenseFromSpdxIdOr id {
      shortName = id;
      fullName = "Licence \"${id}\", as the Hugging Face Hub names it";
      url = "https://huggingface.co/docs/hub/repositories-licenses";
    };
}
