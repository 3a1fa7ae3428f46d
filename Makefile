# make demo · serve · test · one · lint · bench     (make help)
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Real nixpkgs where it can be had; otherwise the host's tools stand in for it (tests/hostpkgs).
# ENGINIX_PKGS=nixpkgs or =host decides by hand.
ENGINIX_PKGS ?= $(shell [ -e /etc/NIXOS ] && echo nixpkgs || echo host)

NIX_nixpkgs = nix --extra-experimental-features "nix-command flakes"
NIX_host = $(CURDIR)/tests/hostpkgs/nix
NIX = $(NIX_$(ENGINIX_PKGS))
DEMO = python3 demo/demo.py --flake "$(CURDIR)" --nix '$(NIX)'
DEV = $$($(CURDIR)/tests/hostpkgs/environments.sh dev)/bin
LINT = $$($(CURDIR)/tests/hostpkgs/environments.sh lint)/bin

.PHONY: help demo serve test test-nix test-python one fuzz lint types bench facts matrix unit gates-table
.PHONY: setup-runtime setup-dev setup-lint
help: ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup-runtime:
	@[ "$(ENGINIX_PKGS)" != host ] || tests/hostpkgs/setup.sh core runtime
setup-dev: python/enginix/checkpoint/casts.so
	@tests/hostpkgs/setup.sh core runtime dev edgellm modelopt rtx gateway tritonserver
setup-lint:
	@tests/hostpkgs/setup.sh lint
# Written beside and renamed: who runs it meanwhile keeps what it has loaded.
%/casts.so: %/casts.c %/casts.sh
	@tests/hostpkgs/setup.sh
	@bash $(@D)/casts.sh $@.new && mv $@.new $@

demo: setup-runtime ## a small model from a hub to an answer, through every stage
	@$(DEMO)

serve: setup-runtime ## the same, and the server stays on port 8000 until Ctrl-C
	@$(DEMO) --serve

test: setup-dev ## everything that is fast enough to run always; ENGINIX_SLOW=1 adds what is slow
	@tests/run.sh $(DEV)/python

test-nix: setup-dev ## pure checks, real builds in the sandbox, the pipeline over a real server
	@tests/nix/run.sh

test-python: setup-dev ## pytest alone
	@PYTHONDONTWRITEBYTECODE=1 $(DEV)/python -m pytest -q -n $$(nproc) --dist loadfile --no-loadscope-reorder

one: setup-dev ## one test: make one T=tests/python/hub/test_lock.py::test_name, or T=engine_hang of tests/nix/cases
	@case "$(T)" in \
	  "") echo "one: give T=tests/python/DIR/test_FILE.py[::TEST] or T=NIX_CASE" >&2; exit 2;; \
	  *.py*) $(DEV)/python -m pytest -q "$(T)";; \
	  *) tests/nix/run.sh $(T);; \
	esac

fuzz: setup-dev ## property tests from random seeds, for FUZZ_MINUTES (60); counterexamples come ready to be pinned
	@$(DEV)/python tests/fuzz.py -n $$(nproc) --dist worksteal

lint: setup-lint ## ruff, mypy --strict without torch's types, shellcheck, nixfmt where there is one
	@$(LINT)/ruff check python tests demo nix && $(LINT)/ruff format --check python tests demo nix
	@cd python && $(LINT)/mypy --cache-dir .mypy_cache/lint --disable-error-code untyped-decorator --disable-error-code no-any-return --no-warn-unused-ignores
	@shellcheck -x $$(git ls-files '*.sh') tests/hostpkgs/nix .ci/run
	@if command -v nixfmt >/dev/null; then nixfmt --check $$(git ls-files '*.nix'); else echo "lint: no nixfmt on this machine; Nix files not checked for style"; fi

types: setup-dev ## mypy --strict with torch's types, which takes the environment of the tests
	@cd python && $(DEV)/mypy

bench: setup-dev ## ratios measured side by side; takes minutes and some GB of disk
	@for part in tests/bench/*/; do for script in "$$part"*.py; do \
	  grep -q '__main__' "$$script" || continue; \
	  echo "== $$script"; $(DEV)/python "$$script" || exit 1; done; done

facts: setup-dev ## what in the tables is older than, or contradicts, what pip's registry has; RECORD=1 keeps it
	@$(DEV)/python tests/facts/facts.py $(if $(RECORD),--record)

matrix: setup-dev ## tests of what touches a library, with its older and newest releases; WHAT=hub|transformers|modelopt|nix
	@$(DEV)/python tests/matrix/matrix.py $(WHAT)

unit: setup-runtime ## the systemd unit that the NixOS module renders for one server
	@cat "$$($(NIX) build --impure --json --no-link --expr 'import ./tests/nix/unit.nix { }' | sed 's/.*"out":"\([^"]*\)".*/\1/')"

gates-table: setup-dev ## healthy formats pass their gates, broken ones fail: both tables, from real runs
	@$(DEV)/python tests/python/gates/gates_table.py
	@$(DEV)/python tests/python/gates/damage_table.py
	@$(DEV)/python tests/python/gates/damage_table.py --executed
	@$(DEV)/python tests/python/gates/healthy_table.py
