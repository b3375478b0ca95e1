"""Networks, and the one file they become. Only `models.modelfile` and `models.pretrained` are free of torch."""
