"""A model of one partition, to which the scripts are compared after each of many random calls."""
