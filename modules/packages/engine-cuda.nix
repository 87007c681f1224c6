# vLLM with its dependencies: one Python environment of the locked upstream wheels. Nothing is compiled.
#
# Why not nixpkgs' vllm: it is old, marked insecure, and its CUDA build often fails. The wheels contain native sm_120
# code. `make verify-wheels` checks that, and that each library they need is in a wheel, in engine-libraries.json, or
# part of the driver. `make prove-engine` runs the phases below outside Nix and examines the result.
{
  lib,
  pkgs,
  stdenv,
  fetchurl,
  python313,
  autoPatchelfHook,
  addDriverRunpath,
  wheelList ? ../wheels.json,
  # Files of the wheels with the suffix .py that are not Python 3.13: templates, and code of other versions.
  notPython ? [ ],
}:
let
  wheels = lib.importJSON wheelList;
  version = (lib.findFirst (w: w.name == "vllm") { version = "0"; } wheels).version;

  # The index, as nixpkgs' fetchPypi names it. The address that fetchPypi builds from the parts of a name is a redirect
  # that the index offers for some files only. The path in wheels.json is the permanent one: the file's BLAKE2b digest.
  address =
    (python313.pkgs.fetchPypi {
      pname = "vllm";
      inherit version;
      format = "wheel";
      sha256 = lib.fakeSha256;
    }).url;
  index = lib.splitString "/packages/" address;
  fetch =
    wheel:
    fetchurl {
      url =
        if lib.length index == 2 then
          "${lib.head index}/packages/${wheel.path}/${wheel.file}"
        else
          throw "engine-cuda.nix: fetchPypi of this nixpkgs gives ${address}, which has no /packages/ in it";
      inherit (wheel) sha256;
    };

  libraries = lib.importJSON ../engine-libraries.json;
  fromNixpkgs = lib.unique (lib.attrValues libraries.nixpkgs);
  site = "lib/python${python313.pythonVersion}/site-packages";
in
stdenv.mkDerivation {
  pname = "engine-cuda";
  inherit version;

  srcs = map fetch wheels;
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

    # glibc 2.42 declares rsqrt and rsqrtf with noexcept(true). CUDA's headers do so from 13.2 on.
    headers="$cuda/include/crt/math_functions.h"
    for declaration in "rsqrt(double x)" "rsqrtf(float x)"; do
      if ! grep -qF " $declaration;" "$headers"; then
        echo "engine-cuda: $headers has no \"$declaration;\": look at this CUDA's headers, and adapt the patch or remove it" >&2
        exit 1
      fi
      sed -i "s/ $declaration;/ $declaration noexcept(true);/" "$headers"
    done

    # The store is read-only: without bytecode each engine would compile its modules anew at every start. Python must
    # not compare it with the source, whose first lines and timestamps the fixup phase changes. The start of Python
    # itself has already written some in the default format: -f replaces it.
    for file in ${lib.escapeShellArgs notPython}; do
      if [ ! -e "$out/${site}/$file" ]; then
        echo "engine-cuda: $file is in the list notPython, but no wheel has it: remove it from the list" >&2
        exit 1
      fi
    done
    if ! PYTHONHASHSEED=0 "$out/bin/python" -m compileall -f -q -j "$NIX_BUILD_CORES" \
      --invalidation-mode unchecked-hash \
      ${
        lib.optionalString (notPython != [ ])
          "-x ${lib.escapeShellArg "/(${lib.concatMapStringsSep "|" lib.escapeRegex notPython})$"}"
      } \
      "$out/${site}"; then
      echo "engine-cuda: the files above do not compile: if they are not modules, add them to the list notPython" >&2
      exit 1
    fi
    runHook postInstall
  '';

  # autoPatchelf replaces the RUNPATH of the wheels' libraries. cuDNN and NVSHMEM load their parts from their own
  # folder while they run, and the parts load libraries of CUDA. The driver's libraries come from the running system.
  appendRunpaths = [
    "$ORIGIN"
    "${placeholder "out"}/${site}/nvidia/cu13/lib"
    "${addDriverRunpath.driverLink}/lib"
  ];
  autoPatchelfIgnoreMissingDeps = lib.attrNames libraries.driver ++ lib.attrNames libraries.optional;
  # Stripping cubins and 3 GB of libraries is slow and saves nothing.
  dontStrip = true;

  doInstallCheck = true;
  installCheckPhase = ''
    runHook preInstallCheck
    "$out/bin/python" - <<'EOF'
    import ctypes
    import importlib.metadata as metadata
    import pathlib

    import numpy, pydantic, tokenizers, safetensors

    site = pathlib.Path(numpy.__file__).parents[1]
    assert metadata.version("vllm") == "${version}"
    assert (site / "vllm").is_dir()
    # The first call loads cuDNN's parts; the process aborts if one is not found.
    major, minor, patch = map(int, metadata.version("nvidia-cudnn-cu13").split(".")[:3])
    library = ctypes.CDLL(str(site / "nvidia/cudnn/lib/libcudnn.so.9"))
    library.cudnnGetVersion.restype = ctypes.c_size_t
    assert library.cudnnGetVersion() == major * 10000 + minor * 100 + patch
    EOF
    # An engine compiles kernels while it starts, with this compiler and the C library's headers of this nixpkgs.
    "$out/${site}/nvidia/cu13/bin/nvcc" -arch=sm_120 -std=c++17 -shared -Xcompiler -fPIC -cudart shared \
      -o kernel.so ${./engine-kernel.cu}
    runHook postInstallCheck
  '';

  passthru = {
    inherit site;
    # Changes with the wheels and with what is done to them, not with each nixpkgs.
    cachesVersion = "${version}-${
      lib.substring 0 12 (
        builtins.hashString "sha256" (lib.readFile wheelList + lib.readFile ./engine-cuda.nix)
      )
    }";
  };
  meta = {
    description = "vLLM with CUDA, from the locked wheels";
    platforms = [ "x86_64-linux" ];
    sourceProvenance = [ lib.sourceTypes.binaryNativeCode ];
  };
}
