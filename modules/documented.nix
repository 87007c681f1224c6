# The modules whose options are in docs/options.md.
[
  ./default.nix
  ./installer/disk.nix
  ./installer/options.nix
]
