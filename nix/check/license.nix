{ lib, ... }:
{
  # The licence that the Hub names, as nixpkgs has licences. A licence that SPDX does not know says
  # neither that it is free nor that it is not: nixpkgs then evaluates what bears it, and
  # `config.blocklistedLicenses` can refuse it (docs/reference/catalogue.md).
  # named :: string -> set
  named =
    id:
    lib.getLicenseFromSpdxIdOr id {
      shortName = id;
      fullName = "Licence \"${id}\", as the Hugging Face Hub names it";
      url = "https://huggingface.co/docs/hub/repositories-licenses";
    };
}
