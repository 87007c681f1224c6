# vLLM with its dependencies: one Python environment of the locked upstream wheels. Nothing is compiled.
#
# Why not nixpkgs' vllm: it is old, marked insecure, and its CUDA build often fails. The wheels contain native sm_120
# code. `make verify-wheels` checks that, and that each library they need is in a wheel, in engine-libraries.json, or
# part of the driver.
{
  lib,
  pkgs,
  stdenv,
  python313,
  autoPatchelfHook,
  addDriverRunpath,
  wheelList ? ../wheels.json,
}:
let
  # fetchPypi finds a wheel by these parts of its name; the hash verifies it.
  fetch =
    wheel:
    python313.pkgs.fetchPypi {
      inherit (wheel)
        pname
        version
        python
        abi
        platform
        sha256
        ;
      format = "wheel";
      dist = wheel.python;
    };
  libraries = lib.importJSON ../engine-libraries.json;
  fromNixpkgs = lib.unique (lib.attrValues libraries.nixpkgs);
  site = "lib/python${python313.pythonVersion}/site-packages";
in
stdenv.mkDerivation {
  pname = "engine-cuda";
  version =
    (lib.findFirst (w: w.name == "vllm") { version = "0"; } (lib.importJSON wheelList)).version;

  srcs = map fetch (lib.importJSON wheelList);
  dontUnpack = true;
  nativeBuildInputs = [
    autoPatchelfHook
    python313.pkgs.pip
  ];
  buildInputs = map (
    path:
    lib.getLib (
      lib.attrByPath (lib.splitString "." path) (throw "engine-libraries.json: nixpkgs has no ${path}")
        pkgs
    )
  ) fromNixpkgs;

  installPhase = ''
    runHook preInstall
    # pip reads the tags of a wheel from its file name; the store adds a hash in front.
    mkdir wheels
    for wheel in $srcs; do ln -s "$wheel" "wheels/$(stripHash "$wheel")"; done
    ${python313.interpreter} -m venv --without-pip "$out"
    pip --python "$out/bin/python" install --no-index --no-deps --no-compile --no-warn-script-location wheels/*.whl
    # The running engine compiles kernels: compilers look for lib64, linkers for names without a version.
    cuda="$out/${site}/nvidia/cu13"
    ln -s lib "$cuda/lib64"
    for library in "$cuda"/lib/lib*.so.*; do
      bare="''${library%%.so.*}.so"
      [ -e "$bare" ] || ln -s "$(basename "$library")" "$bare"
    done
    runHook postInstall
  '';

  # The driver's libraries come from the running system, never from the build.
  appendRunpaths = [ "${addDriverRunpath.driverLink}/lib" ];
  autoPatchelfIgnoreMissingDeps = lib.attrNames libraries.driver ++ lib.attrNames libraries.optional;
  # Stripping cubins and 3 GB of libraries is slow and saves nothing.
  dontStrip = true;

  doInstallCheck = true;
  installCheckPhase = ''
    "$out/bin/python" - <<'EOF'
    import importlib.metadata as metadata
    assert metadata.version("vllm") == "${
      (lib.findFirst (w: w.name == "vllm") { version = "0"; } (lib.importJSON wheelList)).version
    }"
    import numpy, pydantic, tokenizers, safetensors
    EOF
    test -e "$out/${site}/vllm"
  '';

  passthru = { inherit site; };
  meta = {
    description = "vLLM with CUDA, from the locked wheels";
    platforms = [ "x86_64-linux" ];
    sourceProvenance = [ lib.sourceTypes.binaryNativeCode ];
  };
}
