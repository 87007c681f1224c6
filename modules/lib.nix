# Functions and values that several modules share, above all the hardened baseline of every unit of ours.
{ lib }:
let
  # The path of a secret: a string outside the store. Nix would copy a path literal into the store, which every user
  # may read.
  secretPath = lib.mkOptionType {
    name = "secretPath";
    description = "absolute path outside the Nix store, in quotes (every user can read the store: put it under /run/secrets)";
    descriptionClass = "noun";
    check =
      v:
      lib.isString v
      && lib.hasPrefix "/" v
      && !lib.hasPrefix builtins.storeDir v
      && builtins.getContext v == { };
    merge = lib.mergeEqualOption;
  };
in
{
  inherit secretPath;

  # NUMA nodes of the cards with these indices, as far as `gpus`, the cards of a host, name them.
  numaNodes =
    gpus: indices:
    lib.unique (
      lib.concatMap (
        card: lib.optional (lib.elem card.index indices && card.numa_node != null) card.numa_node
      ) gpus
    );
  # Indices of the cards of replica number `replica` of `engine`.
  cardsOf =
    engine: replica:
    let
      each = engine.tensor_parallel * engine.pipeline_parallel;
    in
    lib.sublist (replica * each) each engine.gpus;
  # Indices of the cards of rank number `rank` of `engine`, which spans hosts.
  cardsOfRank =
    engine: rank:
    let
      each = engine.tensor_parallel * engine.pipeline_parallel / lib.length engine.nodes;
    in
    lib.sublist (rank * each) each engine.gpus;

  # Where a vLLM engine sees its Python environment. The keys of compiled kernels hold the paths of the files that they
  # come from, so each new store path would compile them anew.
  environmentMount = "/run/engine-environment";

  # Values of LoadCredential for secrets by name.
  credentials = lib.mapAttrsToList (name: path: "${name}:${path}");

  # Options of a Telegram bot that writes to one chat: `chat` and `token` describe them, `tokenFile` is an example.
  botOptions =
    {
      chat,
      token,
      tokenFile,
    }:
    {
      chatId = lib.mkOption {
        type = lib.types.nullOr (lib.types.strMatching "-?[0-9]{1,20}|@[A-Za-z0-9_]{5,32}");
        default = null;
        example = "123456789";
        description = chat;
      };
      tokenFile = lib.mkOption {
        type = lib.types.nullOr secretPath;
        default = null;
        example = tokenFile;
        description = token;
      };
      api = lib.mkOption {
        type = lib.types.strMatching "https?://[A-Za-z0-9.:_/-]+";
        default = "https://api.telegram.org";
        example = "http://127.0.0.1:8081";
        description = "Address of the Bot API: Telegram's own, or a Bot API server of yours.";
      };
    };

  # Access of a unit that connects to the Bot API, whose addresses change. AF_UNIX resolves its name.
  botAccess = {
    RestrictAddressFamilies = [
      "AF_UNIX"
      "AF_INET"
      "AF_INET6"
    ];
    IPAddressDeny = "";
  };

  # Access of a unit to the cards: they are devices; all other devices stay closed.
  cardAccess = {
    PrivateDevices = false;
    DeviceAllow = [
      "char-nvidia rw"
      "char-nvidia-uvm rw"
    ];
  };

  # Access of a unit to cards by Vulkan: the render nodes, not the outputs to screens. Their group is render.
  renderAccess = {
    PrivateDevices = false;
    DeviceAllow = [ "char-drm rw" ];
    SupplementaryGroups = [ "render" ];
    # The group would be unknown in a namespace of the unit's own.
    PrivateUsers = false;
  };

  # Strict enough for 2.0 or better of `systemd-analyze security`. A unit that needs more access names it, with the
  # reason.
  hardened = {
    AmbientCapabilities = "";
    CapabilityBoundingSet = "";
    DevicePolicy = "closed";
    IPAddressDeny = "any";
    KeyringMode = "private";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    PrivateDevices = true;
    PrivateMounts = true;
    PrivateTmp = true;
    PrivateUsers = true;
    ProcSubset = "pid";
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RemoveIPC = true;
    RestrictAddressFamilies = [ "AF_UNIX" ];
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallErrorNumber = "EPERM";
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
    ];
    UMask = "0077";
  };
}
