# make run    build .venv if need be and execute the main notebook, its output shown as it goes
# make test   build .venv if need be and run every check: style, import direction, tests of all models, notebooks
# make lab    open the notebooks in JupyterLab
# make render execute the notebooks and store their outputs in them
# make exercises  write the exercise sheets (solutions blanked) to notebooks/exercises/

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: run test lab render exercises clean

run: $(READY)
	mkdir -p runs
	$(BIN)/papermill notebooks/03_ldn_train.ipynb runs/03_ldn_train.ipynb --cwd notebooks \
		--log-output --no-progress-bar --execution-timeout 900
	@echo "done: open runs/03_ldn_train.ipynb (make lab), or read notebooks/03_ldn_train.ipynb"

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --nbval --all-models

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir notebooks

render: $(READY)
	$(BIN)/python -m segkit.notebook.render

exercises: $(READY)
	$(BIN)/python -m segkit.notebook.blanks

clean:
	rm -rf .venv

# The stamp is written last, so that an interrupted installation is done again.
$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'segkit needs Python 3.11 or newer; this is ' + sys.version)"
	rm -f $(READY)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	touch $(READY)
