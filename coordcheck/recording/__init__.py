"""One model under hooks: what its layers and its parameters did, as the rows of a record."""
