"""How the tensors of a module can be split over ranks: read off its code, nothing is run."""
