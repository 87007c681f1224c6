# The two commands: `make up` serves on this machine, `make test` proves it. The other targets are for developers.
#
# PYTHON=…       A Python 3.11 to 3.14. The default is the first of python3, python3.14 … python3.11 that is one.
# PORT=…         The gateway's port. The default is 8000.
# ENGINE_PORT=…  The engine's port on loopback. The default is 8101.
# ENGINE=fake    No engine: a mock generates tokens by the clock, and every output names it.
# MODEL=tiny     Do not contact the model hub; make the tiny random model.
# SEEDS="1 2"    The machines that `make test-boot` boots, one for each seed.
# WORKERS=4      Processes of `make test` that run in parallel. Most tests wait, so the default exceeds two cores.
# ONCE=1         End after the smoke test, with its exit code.
# ENGINE_PYTHON=…  The Python 3.13 with which `make lock-engine` resolves.
# WHEELS=…       A folder that keeps the wheels of `make verify-wheels`, for the next run and for `make prove-engine`.
# NIX=… NIXPKGS=… WORK=…  For `make prove-engine`: the program nix, a whole nixpkgs, a folder with 16 GB of room.
# CARD_PYTHON=…  For `make prove-gpu`: a Python with vLLM for CUDA. ARGS="--json FILE" keeps the report.
# TORCH_INDEX=…  The address of torch's CPU build, if pip is not set up for it. pytorch.org shows it for "CPU".

PYTHON ?= $(shell for one in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$one -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && echo $$one && exit; \
  done; echo python3)
ENGINE ?= vllm
ENGINE_PYTHON ?= python3.13
NIX ?= nix
MODEL ?= auto
SEEDS ?= 1 2 3
WORKERS ?= 4
export TORCH_INDEX
# Variables with which a Python would import other modules than those of its environment.
unexport PYTHONHOME PYTHONPATH PYTHONSAFEPATH PYTHONPLATLIBDIR PYTHONEXECUTABLE PYTHONUSERBASE PYTHONSTARTUP
unexport PYTHONINSPECT PYTHONOPTIMIZE
# With it, each of the thousands of processes of the tests compiles every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: up test test-operate test-operate-vllm test-kills test-chats-vllm test-nodes test-clients test-boot test-install test-network network-table lint fmt lock lock-check lock-clients lock-engine
.PHONY: verify-wheels prove-engine prove-cold-start prove-gpu options-doc docs calibrate bench clean

PORTS = $(if $(PORT),--port='$(PORT)') $(if $(ENGINE_PORT),--engine-port='$(ENGINE_PORT)')

up:
	@$(PYTHON) -m tools.bootstrap --engine $(ENGINE) $(PORTS)
	@exec .venv/bin/appliance up --engine $(ENGINE) --model $(MODEL) $(PORTS) $(if $(ONCE),--once)

test:
	@$(PYTHON) -m tools.bootstrap --tests --engine $(ENGINE)
	@.venv/bin/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(if $(filter fake,$(ENGINE)),-m "not vllm") $(ARGS)

# Monitoring, notices, agents and their units: the tests of operation, a part of `make test`.
test-operate:
	@$(PYTHON) -m tools.bootstrap --tests --engine fake
	@.venv/bin/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder -m "not vllm" \
	  tests/watch tests/notices tests/nix/test_observe.py $(ARGS)

# Real vLLM on the CPU: a replica that drains, the names of its metrics, embedders and rerankers of Qwen3.
test-operate-vllm:
	@$(PYTHON) -m tools.bootstrap --tests --engine vllm
	@.venv/bin/python -m pytest tests/vllm/drain_on_vllm.py tests/vllm/metric_names.py \
	  tests/vllm/qwen3_pooling.py $(ARGS)

# The assistant: 60 kills of it, of the gateway and of the engine at random moments.
test-kills:
	@$(PYTHON) -m tools.bootstrap --tests --engine fake
	@.venv/bin/python -m tests.assistant.crashes $(ARGS)

# 200 chats at once, each with a style of its own, on real vLLM on the CPU.
test-chats-vllm:
	@$(PYTHON) -m tools.bootstrap --tests --engine vllm
	@.venv/bin/python -m tests.vllm.many_chats $(ARGS)

# One real vLLM over two hosts in network namespaces, and its failures: as root, with a whole nixpkgs (nix-real).
# docs/nodes.md has the command for a real Ray cluster.
test-nodes:
	@$(PYTHON) -m tools.bootstrap --tests --engine vllm
	@.venv/bin/python -m tests.nodes.failures $(ARGS)

# Client programs with the settings of docs/clients, on real vLLM on the CPU; it installs them in the user's cache.
test-clients:
	@$(PYTHON) -m tools.bootstrap --tests --engine $(ENGINE)
	@.venv/bin/python -m tests.client_programs --engine $(ENGINE) $(ARGS)

# Real boots under emulation, one machine a seed, as root.
test-boot:
	@$(PYTHON) -m tools.bootstrap --tests --engine fake
	@.venv/bin/python -m tests.boot.run --seeds $(SEEDS) $(ARGS)

# The installer on a virtual disk under emulation, as root.
test-install:
	@$(PYTHON) -m tools.bootstrap --tests --engine fake
	@.venv/bin/python -m pytest tests/install/on_disk.py -v $(ARGS)

# The network with real parts, in namespaces: as root. It names each skipped part with the reason.
test-network:
	@$(PYTHON) -m tools.bootstrap --tests --engine $(ENGINE)
	@.venv/bin/python -m tests.network.together $(if $(filter fake,$(ENGINE)),-m "not vllm") $(ARGS)

network-table:
	@$(PYTHON) -m tools.bootstrap --tests --engine $(ENGINE)
	@.venv/bin/python -m tests.network.table $(ARGS)

lint:
	@$(PYTHON) -m tools.bootstrap --tests --engine fake
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python -m tools.names
	.venv/bin/python -m tools.prose
	.venv/bin/python -m tools.nix_format

fmt:
	@$(PYTHON) -m tools.bootstrap --tests --engine fake
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

lock lock-check:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --require-hashes -r requirements/lock.lock
	.venv-lock/bin/python -m tools.lock $(if $(filter lock-check,$@),--check) $(ARGS)

lock-clients:
	$(PYTHON) -m tests.clients.install --lock

lock-engine:
	.venv/bin/python -m tools.wheels.lock_engine --python '$(ENGINE_PYTHON)'

verify-wheels:
	.venv/bin/python -m tools.wheels.verify_wheels $(if $(WHEELS),--wheels '$(WHEELS)')

prove-engine:
	$(if $(and $(NIXPKGS),$(WHEELS),$(WORK)),,$(error set NIXPKGS, WHEELS and WORK; the head of the Makefile describes them))
	.venv/bin/python -m tools.wheels.prove_engine --nix '$(NIX)' --nixpkgs '$(NIXPKGS)' --wheels '$(WHEELS)' --work '$(WORK)'

# Real vLLM on the CPU from two copies of its environment, as root.
prove-cold-start:
	@$(PYTHON) -m tools.bootstrap --tests --engine vllm
	.venv/bin/python -m tools.prove_cold_start $(ARGS)

# Ten minutes on a machine with an NVIDIA card: CARD_PYTHON is a Python with vLLM for CUDA. No network.
prove-gpu:
	@$(PYTHON) -m tools.prove_gpu $(if $(CARD_PYTHON),--python '$(CARD_PYTHON)') $(ARGS)

options-doc:
	.venv/bin/python -m tools.options_doc

# The manual in English and Russian, for the browser and for the printer; offline.
docs:
	@$(PYTHON) -m tools.bootstrap --tests --engine fake
	.venv/bin/python -m tools.manual
	.venv/bin/python -m tools.manual --site var/site

bench:
	@$(PYTHON) -m tools.bootstrap --tests --engine vllm
	.venv/bin/python -m benchmarks.gateway.run $(ARGS)

calibrate:
	.venv/bin/python -m tools.calibrate

clean:
	rm -rf .venv .venv-engine .venv-lock var .bootstrap.lock tests/clients/node/node_modules
