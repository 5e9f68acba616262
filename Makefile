# Every target does the set-up it needs, once. PYTHON=python3.12 picks the interpreter, ARGS=… goes to the command.
.DEFAULT_GOAL := help
.PHONY: help demo compare quick test test-all coverage check docs bench setup lock clean

bin := .venv/bin
ready := .venv/.ready
# units, which train nothing but a few layers; two of them start a process
quick := $(addprefix tests/,schedule recipe sparsity cost tasks models jobs/test_lint.py) \
	$(addprefix --ignore=tests/,sparsity/test_every_method.py sparsity/test_two_ranks.py recipe/test_recipe_fuzz.py)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s  %s\n", $$1, $$2 }' Makefile

demo: $(ready) ## train a small ResNet to 90 % sparsity on MNIST digits, into runs/demo (2 minutes)
	@$(bin)/acdc demo $(ARGS)

compare: $(ready) ## train every method at 90, 95 and 98 % on the demo digits, into studies/methods_demo (30 minutes)
	@$(bin)/acdc data write demo
	@$(bin)/acdc sweep methods_demo $(ARGS)
	@$(bin)/acdc report methods_demo

quick: $(ready) ## run the tests of single parts, after each edit; ARGS='-k masks' picks some (1 minute)
	@$(bin)/python -m pytest $(quick) $(ARGS)

test: $(ready) ## run all tests but the slow ones (6 to 7 CPU minutes)
	@$(bin)/python -m pytest $(ARGS)

test-all: $(ready) ## run the slow ones too, which prove at length what the others show once (two hours)
	@$(bin)/python -m pytest -m 'not gpu and not slurm' --hypothesis-profile=long $(ARGS)

coverage: $(ready) ## run `make test` and say which lines and branches of acdc_cli it reached
	@$(bin)/coverage erase
	@$(bin)/coverage run -m pytest $(ARGS)
	@$(bin)/coverage combine --quiet
	@$(bin)/coverage report

check: $(ready) ## format, lint, types and the direction of imports
	@$(bin)/ruff format --check acdc_cli tests benchmarks scripts examples
	@$(bin)/ruff check acdc_cli tests benchmarks scripts examples
	@$(bin)/mypy --strict acdc_cli
	@$(bin)/lint-imports

docs: $(ready) ## build the documentation into site/; warnings are errors
	@$(bin)/python -c 'import material' 2>/dev/null || \
		$(bin)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.lock
	@PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(bin)/python -m mkdocs build --strict

bench: $(ready) ## measure speed, into benchmarks/results
	@$(bin)/python -m benchmarks $(ARGS)

setup: ## do the set-up again (after installing FFCV's system packages)
	@scripts/setup.sh

lock: $(ready) ## resolve pyproject.toml into the lock files; UPGRADE=1 takes new versions
	@scripts/lock.sh

clean: ## remove .venv and every cache; runs/ and data/ stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist site
	find . -name __pycache__ -not -path './runs/*' -not -path './data/*' -prune -exec rm -rf {} +

$(ready): requirements.lock requirements-ffcv.lock pyproject.toml scripts/setup.sh
	@scripts/setup.sh
