"""The claims of the papers, one file for each family, and the list of all."""
