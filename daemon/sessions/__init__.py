"""Sessions: a model on a data set, from the proposal to the last image, and what may run unasked."""
