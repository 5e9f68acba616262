# Every target does the set-up it needs, once. PYTHON=python3.12 picks the interpreter, ARGS=… goes to the command.
.DEFAULT_GOAL := help
.PHONY: help demo compare test check bench setup lock clean

bin := .venv/bin
ready := .venv/.ready

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s  %s\n", $$1, $$2 }' Makefile

demo: $(ready) ## train a small ResNet to 90 % sparsity on MNIST digits, into runs/demo (2 minutes)
	@$(bin)/acdc demo $(ARGS)

compare: $(ready) ## train every method at 90, 95 and 98 % on the demo digits, into studies/methods_demo (30 minutes)
	@$(bin)/acdc data write demo
	@$(bin)/acdc sweep methods_demo $(ARGS)
	@$(bin)/acdc report methods_demo

test: $(ready) ## run the tests; ARGS='-k masks' picks some (20 minutes)
	@$(bin)/python -m pytest $(ARGS)

check: $(ready) ## format, lint, types and the direction of imports
	@$(bin)/ruff format --check acdc_cli tests benchmarks scripts
	@$(bin)/ruff check acdc_cli tests benchmarks scripts
	@$(bin)/mypy --strict acdc_cli
	@$(bin)/lint-imports

bench: $(ready) ## measure speed, into benchmarks/results
	@$(bin)/python -m benchmarks $(ARGS)

setup: ## do the set-up again (after installing FFCV's system packages)
	@scripts/setup.sh

lock: $(ready) ## resolve pyproject.toml into the lock files; UPGRADE=1 takes new versions
	@scripts/lock.sh

clean: ## remove .venv and every cache; runs/ and data/ stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -not -path './runs/*' -not -path './data/*' -prune -exec rm -rf {} +

$(ready): requirements.lock requirements-ffcv.lock pyproject.toml scripts/setup.sh
	@scripts/setup.sh
