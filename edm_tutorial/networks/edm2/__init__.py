"""EDM2's U-Net: magnitude-preserving layers, forced weight norms, a learned loss weight."""
