# The same words as dev.py, for those who type make.
.PHONY: demo test faults cluster bench
demo test faults cluster bench:
	python3 dev.py $@
