# The same words as dev.py, for those who type make.
.PHONY: demo test faults cluster served bench
demo test faults cluster served bench:
	python3 dev.py $@
