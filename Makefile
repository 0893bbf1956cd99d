# make demo    evaluate the demo weights on real test images
# make test    lint and test, as CI does
# make check   lint and the fast tests only
# make train   train the demo model from scratch
#
# Each makes its own environment in .venv first. Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := configs/demo/xcit_demo_p4_fashion_mnist.yaml
WEIGHTS := weights/xcit_demo_p4_fashion_mnist.pdparams

.PHONY: demo test check train clean

demo: $(VENV)/installed
	@$(BIN)/python tools/train.py -c $(DEMO) --load $(WEIGHTS) --evaluate-only
	@echo
	@echo "acc1 is the share, in percent, of the 2,000 test images whose class came first."
	@echo "Next:"
	@echo "  make train                                          train this model from scratch"
	@echo "  $(BIN)/python tools/train.py --help                 what else there is"
	@echo "  $(BIN)/python tools/train.py -c configs/xcit/xcit_nano_12_p8_224.yaml --data_dir ILSVRC2012 --load W.pdparams --evaluate-only"

train: $(VENV)/installed
	$(BIN)/python tools/train.py -c $(DEMO) --resume auto

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not slow"

$(VENV)/installed: setup.py $(wildcard passl_xcit/ops/build.py passl_xcit/ops/native/*.h passl_xcit/ops/native/*.cc)
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 9))" || \
		{ echo "error: $(PYTHON) is older than Python 3.9; name another: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "error: $(PYTHON) cannot make environments (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "installing Paddle and what else is needed into $(VENV) (1.2 GB on the disk, a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . || \
		{ echo "error: installing failed; Paddle has wheels for Python 3.9 to 3.13, this is $$($(PYTHON) --version)"; exit 1; }
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]" && touch $@

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis
