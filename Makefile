# make run      sets everything up, runs one retraining through Airflow, shows the outcome, leaves the UI up until Ctrl-C
#                 DROP=path      labelled X-rays, a folder or an archive, instead of the generated demonstration drop
#                 ONCE=1         ends when the run has ended
#                 PROFILE=name   profiles/<name>.toml (demo, cpu, paper), or `default` for the published method
# make test     sets everything up, runs the tests but the slow ones
# make test-all sets everything up, runs all tests: also whole runs through Airflow, browsers, kills, races, memory
# make clean    removes what `make run` keeps in .local/
# make lock     compiles requirements.in into requirements.txt, and the CUDA libraries for docker/Dockerfile.gpu

PYTHON ?= python3
UV := uv==0.13.9
READY := .venv/.ready

# What the steps of a run import. Compiled once at install: where byte code is not written later (another user,
# PYTHONDONTWRITEBYTECODE), each step would compile them anew, in 12 s for Keras alone. The rest is compiled when used.
COMPILED := airflow alembic altair boto3 botocore cryptography fastapi google/protobuf great_expectations joblib keras \
  matplotlib narwhals numpy optree pandas PIL pyarrow pydantic pydantic_settings rich scipy sklearn sqlalchemy \
  starlette tensorflow typer urllib3
NOT_COMPILED := '/(tests?|_tf_keras|jax|torch|openvino|datasets|example_dags|providers/(amazon|celery|fab))/'
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-all clean lock
.DEFAULT_GOAL := run

run: $(READY)
	@.venv/bin/python -m local.run

# Three processes for two cores: tests of servers and of Airflow wait a good part of their time.
PYTEST := .venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test: $(READY)
	@$(PYTEST) -m "not slow"

test-all: $(READY)
	@$(PYTEST)

clean:
	@$(PYTHON) -m local.state

lock: $(READY)
	.venv/bin/uv pip compile -q --universal --python-version 3.11 requirements.in -o requirements.txt
	.venv/bin/uv pip compile -q --universal --python-version 3.11 -c requirements.txt docker/requirements-gpu.in \
	  -o docker/requirements-gpu.txt

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed. Received: $$($(PYTHON) --version 2>&1) from '$(PYTHON)'." \
	       "Name another one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	if $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -m venv --without-pip .venv && $(PYTHON) -m pip --python .venv/bin/python install -q $(UV); \
	else $(PYTHON) -m venv .venv && .venv/bin/python -m pip install -q $(UV); fi
	.venv/bin/uv pip sync -q --python .venv/bin/python requirements.txt
	.venv/bin/uv pip install -q --python .venv/bin/python --no-deps -e . pip
	cd .venv/lib/python*/site-packages && ../../../bin/python -m compileall -q -j 0 -x $(NOT_COMPILED) $(COMPILED)
	@touch $@
