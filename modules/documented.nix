# The modules whose options docs/options.md describes.
[
  ./default.nix
  ./installer/disk.nix
  ./installer/options.nix
]
