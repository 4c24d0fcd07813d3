"""EDM2's U-Net of magnitude-preserving layers, its forced weight norms and its learned loss weight."""
