# All targets work in .venv; the first target that needs it makes it. `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= python3
BREWCTL := .venv/bin/brewctl
ORDER_ADDRS := --addr 127.0.0.1:50081 --addr 127.0.0.1:50082
CAST := order order inventory inventory notifications
COMPOSE := docker compose
# Variables that direct pip to other places, such as PIP_USER, would break an installation into .venv.
INSTALL := env -u PIP_USER -u PIP_TARGET -u PIP_PREFIX -u PIP_REQUIRE_HASHES .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "brewctl needs Python 3.11 or later; this is $$($(PYTHON) -V): make PYTHON=python3.12 …"; exit 1; }
	@echo "making .venv with $$($(PYTHON) -V) …"
	@$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/pip pyproject.toml constraints.txt
	@echo "installing brewctl with its sandbox into .venv …"
	@$(INSTALL) -e '.[sandbox]'
	@touch $@

.venv/.dev: .venv/bin/pip pyproject.toml constraints.txt
	@echo "installing brewctl with its development tools into .venv …"
	@$(INSTALL) -e '.[dev]'
	@touch $@ .venv/.demo

.PHONY: demo
demo: .venv/.demo ## Play the whole story: five nodes, 200 orders, a kill -9, a verdict
	@$(BREWCTL) demo

.PHONY: live
live: .venv/.demo ## Run the cast in the background and watch it; make down ends it
	@$(BREWCTL) up
	@$(BREWCTL) status | grep -q '^order-1 ' || $(BREWCTL) start $(CAST)
	@$(BREWCTL) top

.PHONY: test
test: lint ## Run every check: lint, then unit, integration and acceptance tests
	@.venv/bin/pytest

.PHONY: chaos
chaos: .venv/.demo ## Play every fault on the sandbox, under load, and verify; some need root
	@$(BREWCTL) chaos --report chaos.html

.PHONY: mutations
mutations: .venv/.dev ## Break each promise on purpose, and see which test, check of verify or verdict of chaos finds it
	@.venv/bin/python -m tests.mutations.promises
	@.venv/bin/python -m tests.mutations.play

.PHONY: bench
bench: .venv/.demo ## Time every leg of the flow beside its floor, on an idle machine
	@$(BREWCTL) bench

.PHONY: test-unit
test-unit: .venv/.dev ## Run the tests that need no server
	@.venv/bin/pytest tests/unit

.PHONY: test-integration
test-integration: .venv/.dev ## Run the tests on real PostgreSQL and Kafka
	@BREW_REQUIRE_INTEGRATION=1 .venv/bin/pytest tests/integration tests/acceptance

.PHONY: lint
lint: .venv/.dev ## Run ruff, mypy --strict and the import contract
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/mypy
	@.venv/bin/lint-imports > .venv/lint-imports.txt || { cat .venv/lint-imports.txt; exit 1; }

.PHONY: audit
audit: .venv/.dev ## Ask the package index for known vulnerabilities of what constraints.txt pins (needs network)
	@$(INSTALL) -e '.[audit]'
	@.venv/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r constraints.txt

.PHONY: hooks
hooks: .venv/.dev ## Have git check each commit: what lint does, of what changed, and generated files
	@.venv/bin/pre-commit install

.PHONY: up
up: .venv/.demo ## Start real PostgreSQL and Kafka in the background
	@$(BREWCTL) up

.PHONY: down
down: .venv/.demo ## Stop them; their data stay
	@$(BREWCTL) down

.PHONY: db-init
db-init: .venv/.demo ## Create the tables
	@$(BREWCTL) db init

.PHONY: topic-create
topic-create: .venv/.demo ## Create the topic and its dead-letter topic
	@$(BREWCTL) topic create

.PHONY: run-order-1
run-order-1: .venv/.demo ## Run order-1 in this terminal, on port 50081
	@$(BREWCTL) serve order --node order-1 --port 50081

.PHONY: run-order-2
run-order-2: .venv/.demo ## Run order-2 in this terminal, on port 50082
	@$(BREWCTL) serve order --node order-2 --port 50082

.PHONY: run-inventory-1
run-inventory-1: .venv/.demo ## Run inventory-1 in this terminal
	@$(BREWCTL) consume inventory --node inventory-1

.PHONY: run-inventory-2
run-inventory-2: .venv/.demo ## Run inventory-2 in this terminal
	@$(BREWCTL) consume inventory --node inventory-2

.PHONY: run-notification
run-notification: .venv/.demo ## Run notification-1 in this terminal
	@$(BREWCTL) consume notifications --node notification-1

.PHONY: create-order
create-order: .venv/.demo ## Create an order at each of the two order nodes
	@$(BREWCTL) create-order --customer c1 --count 2 $(ORDER_ADDRS)

.PHONY: grpcurl-create
grpcurl-create: ## Create an order with grpcurl
	@grpcurl -plaintext -d '{"customer_id": "c1", "amount_cents": 450, "currency": "EUR"}' \
	  127.0.0.1:50081 brew.orders.v1.OrderService/Create

.PHONY: orders-count
orders-count: .venv/.demo ## Count the orders
	@$(BREWCTL) counts | tr ' ' '\n' | sed -n 's/^orders=//p'

.PHONY: reservations-count
reservations-count: .venv/.demo ## Count the reservations
	@$(BREWCTL) counts | tr ' ' '\n' | sed -n 's/^reservations=//p'

.PHONY: notifications-count
notifications-count: .venv/.demo ## Count the notifications
	@$(BREWCTL) counts | tr ' ' '\n' | sed -n 's/^notifications=//p'

.PHONY: compose-up
compose-up: ## Start PostgreSQL and Kafka in containers instead (needs Docker)
	@$(COMPOSE) up --detach --wait
	@echo "brewctl finds them by default while no sandbox runs; for other tools:"
	@echo "export BREW_DATABASE_URL=postgresql://brew:brew@127.0.0.1:5432/brew"
	@echo "export BREW_KAFKA_BROKERS=127.0.0.1:9092,127.0.0.1:9093,127.0.0.1:9094"

.PHONY: compose-down
compose-down: ## Stop the containers and remove their data
	@$(COMPOSE) down --volumes

.PHONY: proto
proto: .venv/.dev ## Generate the gRPC and Protobuf modules from orders.proto
	@.venv/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. brewctl/proto/orders.proto

.PHONY: lock
lock: .venv/.dev ## Resolve Kafka's jars anew (jars.lock); constraints.txt is uv pip compile's
	@.venv/bin/python -m brewctl.sandbox.jars > jars.lock.new && mv jars.lock.new brewctl/sandbox/jars.lock

.PHONY: docs
docs: .venv/.demo ## Write docs/cli.md from the program
	@.venv/bin/python -m brewctl.cli.reference > docs/cli.md

.PHONY: pictures
pictures: .venv/.demo ## Make the pictures of the documentation from real runs
	@$(BREWCTL) demo --picture docs/demo.svg --report docs/report.svg
	@$(BREWCTL) up && $(BREWCTL) db init --reset && $(BREWCTL) start $(CAST)
	@$(BREWCTL) load --rate 50 --duration 45 & \
	 $(BREWCTL) top --picture docs/top.svg --after 40 & \
	 sleep 18 && kill -9 "$$($(BREWCTL) status | awk '$$1 == "inventory-1" {print $$2}')" && wait
	@$(BREWCTL) down

.PHONY: clean
clean: ## Remove .venv and caches; data of the sandbox stay (brewctl down --purge)
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
