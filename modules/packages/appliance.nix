# The appliance. Its few dependencies come from nixpkgs; the flake's lock pins them.
{ lib, python313Packages }:
python313Packages.buildPythonApplication {
  pname = "llm-appliance";
  version = (lib.importTOML ../../pyproject.toml).project.version;
  pyproject = true;
  src = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.unions [
      ../../pyproject.toml
      ../../LICENSE
      ../../appliance
      (lib.fileset.maybeMissing ../../README.md)
      (lib.fileset.maybeMissing ../../loadtests)
    ];
  };
  build-system = [ python313Packages.setuptools ];
  dependencies =
    with python313Packages;
    [
      aiogram
      alembic
      fastapi
      httpcore
      httptools
      httpx
      jinja2
      latex2mathml
      mammoth
      markdown-it-py
      markdownify
      mdit-py-plugins
      msgspec
      nh3
      numpy
      prometheus-client
      psycopg
      pydantic
      pygments
      pypdfium2
      python-multipart
      rich
      snowballstemmer
      sqlalchemy
      uvicorn
      uvloop
      zstandard
    ]
    # The smoke test and `appliance loadtest` are Locust scenarios.
    ++ [ locust ];
  # pip resolved the versions that pyproject.toml requires; nixpkgs has those of the pin. The ranges do not decide: the
  # imports below and the checks of the flake run with the pin's versions.
  pythonRelaxDeps = true;
  pythonImportsCheck = [
    "appliance.admin.app"
    "appliance.assistant.page.markdown"
    "appliance.assistant.retrieval.context"
    "appliance.cli"
    "appliance.engines.mock"
    "appliance.gateway.main"
    "appliance.smoketest.run"
    "appliance.telegram.main"
    "loadtests.run"
    "loadtests.locustfile"
    "psycopg"
  ];
  meta = {
    description = "Private LLM service: gateway, engine start, checks";
    license = lib.licenses.mit;
    mainProgram = "appliance";
  };
}
