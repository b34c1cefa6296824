# The same words as dev.py, for those who type make.
.PHONY: demo test faults cluster gpu served bench
demo test faults cluster gpu served bench:
	python3 dev.py $@
