"""What maintainers run: build the notebooks, check the ledger, train the base, measure on a GPU."""
