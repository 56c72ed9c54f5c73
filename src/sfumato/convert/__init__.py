"""Foreign weights become model folders: one file a family, with its table of renamed keys."""
