# make demo   creates .venv, installs, and runs the main job
# make test   creates .venv, installs, and runs tests/unit and tests/integration
# make test-slow   runs tests/slow; needs Debian's prometheus
# make studies  runs all studies, one after the other
# make chaos  brings 42 faults about in real runs
PYTHON ?= $(shell for v in 3.11 3.12 3.13; do python$$v -c '' 2>/dev/null && echo python$$v && break; done)
RUN := .venv/bin
# Images set it, and then each process that tests start compiles all modules anew.
unexport PYTHONDONTWRITEBYTECODE
PARTS := __init__.py __main__.py benchmarks cluster learner proto reward_service rollout_workers

.PHONY: setup demo studies test test-slow check bench chaos docs screenshots gallery clean

setup: .venv/ready

# torch comes first and by version. TORCH_INDEX names where it is taken from: PyPI's brings gigabytes of CUDA packages.
.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "there is no python3.11, 3.12 or 3.13 here; name one: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN)/pip install --quiet torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(RUN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(RUN)/branchgrpo train recipes/glyphs.yaml $(ARGS)

TREE := {method: branch_grpo, steps: 16, splits: {0: 2, 3: 2, 6: 2, 9: 2}, eta: 0.7}
studies: setup
	status=0; for study in studies/*.yaml; do $(RUN)/branchgrpo study $$study $(ARGS) || status=1; done; \
	for run in runs/scaling/runs/*_81-seed*; do out=runs/diversity/$${run##*/}; [ -e $$out ] || \
	$(RUN)/branchgrpo diversity $$run 'schedule=$(TREE)' --prompts 40 --out $$out || status=1; done; exit $$status

# Three processes for two cores: many tests wait for Ray, a browser or a command.
test: setup
	$(RUN)/pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder $(ARGS)

test-slow: setup
	$(RUN)/pytest tests/slow --numprocesses=2 --dist=loadfile --no-loadscope-reorder $(ARGS)

check: setup
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	mkdir -p build/types/branchgrpo
	ln -sfn $(foreach part,$(PARTS),$(CURDIR)/$(part)) build/types/branchgrpo/
	MYPYPATH=build/types $(RUN)/mypy --namespace-packages --explicit-package-bases -p branchgrpo

bench: setup
	$(RUN)/python -m branchgrpo.benchmarks.speed.tree_vs_sequential --out build/bench
	$(RUN)/python -m branchgrpo.benchmarks.speed.methods --out build/bench
	$(RUN)/python -m branchgrpo.benchmarks.speed.fast_steps --out build/bench
	$(RUN)/python -m branchgrpo.benchmarks.speed.ray_overhead --out build/bench
	$(RUN)/python -m branchgrpo.benchmarks.speed.observability_overhead --out build/bench
	$(RUN)/python -m branchgrpo.benchmarks.speed.startup --out build/bench
	$(RUN)/python -m branchgrpo.benchmarks.scaling.report --out build/bench
	$(RUN)/python -m branchgrpo.benchmarks.speed.serving --out build/bench

chaos: setup
	$(RUN)/python -m branchgrpo.benchmarks.chaos --out build/bench $(ARGS)

docs: setup
	$(RUN)/python -m branchgrpo.cluster.pages.recipe > docs/recipe.md
	$(RUN)/python -m branchgrpo.cluster.pages.metrics > docs/metrics.md
	$(RUN)/python -m branchgrpo.cluster.pages.files > docs/files.md
	$(RUN)/python -m branchgrpo.cluster.pages.dashboards cluster/observability/grafana/dashboards

# of the web pages about a run: make screenshots RUN_FOLDER=runs/glyphs; needs Debian's chromium
screenshots: setup
	$(RUN)/python -m branchgrpo.cluster.pages.screenshots $(RUN_FOLDER) docs/images

# docs/gallery.md's runs, good and bad, and their pictures: about 15 minutes on one core; what is there isn't run again
gallery: setup
	$(RUN)/python -m branchgrpo.cluster.pages.gallery build/gallery docs/images

clean:
	rm -rf .venv build
