# make demo   set up, sweep on this machine's device, write a report
# make test   set up, run the tests
# make env    set up only: .venv with the pinned CPU set, or the CUDA build where an NVIDIA driver is found

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU || echo -c constraints/cpu.txt)

.PHONY: demo test check env clean

env: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[test]'
	touch $@

demo: env
	rm -rf results/demo reports/demo
	$(BIN)/gsbench run --suite backward --out results --name demo
	$(BIN)/gsbench report results/demo --out reports/demo

# Two halves side by side: the library's tests, most of which compile kernels, with the trainer's; and the rest of the harness's, most of
# which wait for processes. The lock of a device is a temporary file: with a folder of its own, the first half measures beside the other.
APART = tests/gsbench/train
test: env
	@own=$$(mktemp -d); \
	TMPDIR=$$own $(BIN)/python -m pytest tests/gskernels tests/benchmarks $(APART) > $(VENV)/library-tests.log 2>&1 & library=$$!; \
	$(BIN)/python -m pytest tests/gsbench $(APART:%=--ignore=%); harness=$$?; \
	wait $$library; library=$$?; rm -rf $$own; cat $(VENV)/library-tests.log; \
	exit $$((harness > library ? harness : library))

check: env
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) results/demo reports/demo
